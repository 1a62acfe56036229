"""A study's run whose node is taken away: it is saved, and goes on in another node's process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from stoplab_platform.exits import Exit
from stoplab_platform.files import read_json
from stoplab_platform.ledger import CellState, Ledger
from stoplab_platform.paths import Home
from support_drivers import written
from support_invariants import has_logged
from support_raylets import Raylets, raylets
from support_store import wait_for
from support_studies import sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]
DEADLINE_S = 600.0


def test_it_goes_on_elsewhere_and_no_step_is_lost(tmp_path: Path, home: Path) -> None:
    spec = sweep(
        {"optim.epochs": 100, "evals": [{"kind": "knn"}], "checkpoint.every_epochs": None,
         "checkpoint.every_steps": 1_000_000},
        space={"positions.noise_std": {"grid": [0.25]}},
        objective={"metric": "val/knn_top1", "mode": "max"},
    )  # fmt: skip
    path = written(tmp_path, spec)
    folder = Home(home).job("j_study")
    with raylets(2) as cluster:
        env = {**cluster.head.env, "STOPLAB_HOME": str(home), "STOPLAB_JOB_ID": "j_study"}
        with (tmp_path / "driver.log").open("wb") as log:
            driver = subprocess.Popen(
                [sys.executable, "-m", "stoplab_sweeps.main", str(path)],
                env=env, stdout=log, stderr=log,
            )  # fmt: skip
        try:
            wait_for(lambda: Ledger(folder).cells(), "a plan", DEADLINE_S)
            (cell,) = Ledger(folder).cells()
            run = folder.run(cell.id)
            wait_for(lambda: has_logged(run) > 20, "some steps", DEADLINE_S)
            node, drained_at = _node(cluster, int(read_json(run.beat(0))["pid"])), has_logged(run)
            cluster.drain(node, 300)
            assert driver.wait(DEADLINE_S) == Exit.OK, (tmp_path / "driver.log").read_text()[-3000:]
        finally:
            driver.kill()
            driver.wait()
    (cell,) = Ledger(folder).cells()
    assert cell.state is CellState.SUCCEEDED
    (saved,) = re.findall(r"resumed at step (\d+)", run.rank_log(0).read_text())
    print(f"drained at step {drained_at}, went on from step {saved}")
    assert int(saved) >= drained_at, "a step was lost"


def _node(cluster: Raylets, pid: int) -> str:
    """Id of the node that a process is on."""
    (node,) = [one for one in cluster.nodes if pid in {p.pid for p in one.family}]
    words = " ".join(node.raylet.cmdline())
    found = re.search(r"--node_id=(\w+)", words)
    assert found, words
    return found.group(1)
