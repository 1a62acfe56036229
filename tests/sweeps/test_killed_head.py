"""A sweep whose Ray head is killed: the lab starts another, and no finished run runs again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from stoplab_platform.ledger import CellState, Ledger
from stoplab_platform.paths import Home
from support_drivers import written
from support_lab import Stoplab, until
from support_studies import sweep

NOISES = [0.0, 0.1, 0.2, 0.25, 0.3, 0.4]
PATIENCE_S = 240

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Stoplab]:
    with Stoplab(tmp_path / "lab", tmp_path).up() as lab:
        yield lab


def kill_head(lab: Stoplab) -> list[str]:
    """Kills the head with all below it, as a machine that goes down does; what it killed."""
    root = psutil.Process(lab.lab()["pids"]["ray"]["pid"])
    family = [root, *root.children(recursive=True)]
    names = [process.name() for process in family if process.is_running()]
    for process in family:
        process.kill()
    psutil.wait_procs(family, timeout=30)
    return names


def test_it_goes_on_without_repeating_a_finished_run(lab: Stoplab, tmp_path: Path) -> None:
    spec = sweep(
        {"optim.epochs": 6},
        space={"positions.noise_std": {"grid": NOISES}},
        limits={"max_concurrent": 1},
    )
    job = lab.json("submit", written(tmp_path, spec))["id"]
    ledger = Ledger(Home(lab.home).job(job))

    def done() -> dict[str, object]:
        """When each finished run began and ended."""
        return {
            cell.id: (cell.started_at, cell.finished_at)
            for cell in ledger.cells()
            if cell.state is CellState.SUCCEEDED
        }

    until(lambda: len(done()) >= 2, PATIENCE_S)
    before = done()
    killed = kill_head(lab)
    print("killed", len(killed), "processes:", ", ".join(sorted(set(killed))))
    assert {"raylet", "gcs_server"} <= set(killed)
    assert len(before) < len(NOISES)
    lab.json("up", "--detach")
    until(lambda: lab.json("jobs", "show", job)["status"]["state"] == "SUCCEEDED", PATIENCE_S)
    after = done()
    assert len(after) == len(NOISES)
    assert {id: after[id] for id in before} == before
    history = lab.json("jobs", "show", job)["status"]
    assert history["attempt"] == 2
    assert [line["state"] for line in history["history"]] == [
        "QUEUED", "STARTING", "RUNNING", "RECOVERING", "RUNNING", "SUCCEEDED",
    ]  # fmt: skip
