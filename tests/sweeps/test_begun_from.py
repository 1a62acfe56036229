"""A comparison whose runs begin from given weights: the ledger knows which they were."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from stoplab_platform.ledger import CellState, Ledger
from stoplab_platform.paths import JobFolder
from stoplab_sweeps.cells import Start, plan, run_cell, train
from stoplab_sweeps.certificate import certify
from stoplab_trainers.model.jepa import build_model
from stoplab_trainers.weights.names import encoder_theirs, renamed
from support_runs import tiny
from support_studies import comparison


def weights(path: Path, seed: int) -> str:
    encoder = build_model(tiny(seed=seed)).encoder
    torch.save(renamed(encoder.state_dict(), encoder_theirs), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_arms_that_began_from_unlike_files_at_one_path_are_no_pair(
    home: Path, tmp_path: Path, mlflow_uri: str
) -> None:
    path = tmp_path / "encoder.pth"
    changes = {"model.init_from": str(path), "optim.epochs": 1, "optim.warmup_epochs": 0}
    spec = comparison(changes, seeds=[0, 1])
    folder = JobFolder(home / "jobs" / "j_1")
    start = Start(job_id="j_1", folder=folder, attempt=1, tracking_uri=mlflow_uri)
    ledger = Ledger(folder)
    ledger.plan(plan(spec))
    first = weights(path, 5)
    for cell in ("deterministic-s0", "stochastic-s0", "deterministic-s1"):
        run_cell(spec, cell, start, train)
    blocks = {0: [ledger.get("deterministic-s0"), ledger.get("stochastic-s0")]}
    assert {cell.state for cell in blocks[0]} == {CellState.SUCCEEDED}
    assert {cell.certificate["init_from"] for cell in blocks[0]} == {first}
    found = certify(spec, blocks)
    assert found["passed"], found["reasons"]
    assert found["streams"]["init_from"] == "equal"
    second = weights(path, 6)
    run_cell(spec, "stochastic-s1", start, train)
    blocks[1] = [ledger.get("deterministic-s1"), ledger.get("stochastic-s1")]
    assert [cell.certificate["init_from"] for cell in blocks[1]] == [first, second]
    found = certify(spec, blocks)
    assert not found["passed"]
    assert found["streams"]["init_from"] == found["streams"]["init"] == "broken"
