"""Ranks start alike: from the same checkpoint, or not at all."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from stoplab_platform.errors import CheckpointError
from stoplab_platform.paths import RunFolder
from stoplab_trainers import checkpoint
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.loop import Run, World, steps
from stoplab_trainers.model.jepa import build_model
from stoplab_trainers.resuming import begin
from stoplab_trainers.stores.local import Local
from stoplab_trainers.weights.official import to_official
from support_runs import tiny


def one_of_two(rank: int, folder: Path) -> None:
    """Starts from a file that lies on this rank's own machine, as it were."""
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    spec = tiny(model__init_from="~/encoder.pth", evals=[])
    for case, machine in (("alike", 0), ("unlike", rank)):
        os.environ["HOME"] = str(folder / f"machine{machine}")
        shards = ShardSet.open(spec.data.train, folder / f"cache{rank}")
        run = Run(spec, shards, World(rank, 2))
        said = folder / f"{case}{rank}"
        try:
            said.write_text(begin(run, RunFolder(folder / case), {"run": "x"}, None)["init_from"])
        except CheckpointError as error:
            said.write_text(str(error))
    dist.destroy_process_group()


def late_of_two(rank: int, folder: Path) -> None:
    """Goes on from checkpoints of which the second rank's file system shows but the first."""
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    listed = Local.names
    if rank == 1:
        Local.names = lambda store: sorted(listed(store))[:1]  # type: ignore[method-assign]
    spec = tiny(evals=[])
    run = Run(spec, ShardSet.open(spec.data.train, folder / f"cache{rank}"), World(rank, 2))
    begin(run, RunFolder(folder / "run"), {"run": "x"}, None)
    (folder / f"step{rank}").write_text(str(run.step))
    dist.destroy_process_group()


@pytest.mark.slow
def test_each_rank_reads_the_same_weights(tmp_path: Path) -> None:
    for number in range(2):
        model = build_model(tiny(seed=number)).encoder
        (tmp_path / f"machine{number}").mkdir()
        weights = to_official(build_model(tiny()), model)["target_encoder"]
        torch.save(weights, tmp_path / f"machine{number}" / "encoder.pth")
    mp.spawn(one_of_two, (tmp_path,), nprocs=2)  # type: ignore[no-untyped-call]
    alike, unlike = ([(tmp_path / f"{case}{rank}").read_text() for rank in range(2)]
                     for case in ("alike", "unlike"))  # fmt: skip
    assert alike[0] == alike[1]
    assert unlike[0] == unlike[1]
    assert f"unlike weights to start from; sha256 by rank 0 {alike[0]}, rank 1 " in unlike[0]


@pytest.mark.slow
def test_all_go_on_from_what_the_first_rank_lists(tmp_path: Path) -> None:
    run = Run(tiny(evals=[]), ShardSet.open("digits", tmp_path / "cache"))
    where = RunFolder(tmp_path / "run").checkpoints
    for report in islice(steps(run), 2):
        state, mine = run.state(), {"run": "x"}
        checkpoint.save(where, step=report.step, tensors=state, identity=mine, keep=2)
    mp.spawn(late_of_two, (tmp_path,), nprocs=2)  # type: ignore[no-untyped-call]
    assert [(tmp_path / f"step{rank}").read_text() for rank in range(2)] == ["2", "2"]
