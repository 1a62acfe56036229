from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stoplab_platform.exits import Exit
from stoplab_platform.files import read_json, write_json
from stoplab_platform.ledger import Cell, CellState
from stoplab_platform.specs import SweepSpec
from stoplab_platform.tracking import client
from stoplab_sweeps.cells import plan, run_of
from stoplab_sweeps.search import propose
from support_drivers import Driver, until
from support_studies import summary, sweep

NOISE = "positions.noise_std"
NOISES = [0.1, 0.15, 0.2, 0.25, 0.3, 0.35]

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]


def counted(spec: SweepSpec, tmp_path: Path, home: Path) -> Driver:
    return Driver(spec, tmp_path, home, module="support_counted")


def killed_in_the_middle(driver: Driver, finished: int) -> set[str]:
    """Starts a driver, kills it after so many runs, and tells which had finished."""
    process = driver.start()
    until(lambda: driver.states().count("SUCCEEDED") >= finished, process)
    driver.kill(process)
    return {id for id, cell in driver.cells().items() if cell.state is CellState.SUCCEEDED}


def test_a_killed_grid_repeats_no_finished_run_and_misses_none(tmp_path: Path, home: Path) -> None:
    spec = sweep(space={NOISE: {"grid": NOISES}}, replicates=2)
    driver = counted(spec, tmp_path, home)
    done = killed_in_the_middle(driver, 4)
    assert 4 <= len(done) < 12
    assert driver.run() == Exit.OK, driver.log()
    starts = driver.starts()
    assert {id: starts[id] for id in done} == dict.fromkeys(done, 1)
    assert starts.keys() == driver.cells().keys() == {cell.id for cell in plan(spec)}
    assert Counter(driver.states()) == {"SUCCEEDED": 12}
    assert sum(starts.values()) <= 12 + 2 + 1  # what ran when it was killed ran again
    assert len(read_json(driver.folder.progress)["best"]["ci95"]) == 2


def test_a_killed_search_goes_on_with_the_points_it_would_have_drawn(
    tmp_path: Path, home: Path
) -> None:
    spec = sweep(
        space={NOISE: {"uniform": [0.0, 1.0]}},
        search={"kind": "optuna", "samples": 14},
        limits={"max_concurrent": 1},
    )
    driver = counted(spec, tmp_path, home)
    done = killed_in_the_middle(driver, 5)
    assert driver.run() == Exit.OK, driver.log()
    starts = driver.starts()
    assert {id: starts[id] for id in done} == dict.fromkeys(done, 1)
    assert Counter(driver.states()) == {"SUCCEEDED": 14}
    assert sum(starts.values()) <= 15
    expected = list[Cell]()
    while fresh := propose(spec, expected):
        (cell,) = fresh
        changes = {"state": "SUCCEEDED", "metrics": summary(run_of(spec, cell)).metrics}
        expected.append(cell.model_copy(update=changes))
    assert [cell.point for cell in driver.cells().values()] == [cell.point for cell in expected]


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_runs_that_fall_behind_end_early(tmp_path: Path, home: Path, kind: str) -> None:
    base = {"optim.epochs": 4, "evals": [{"kind": "knn", "every_epochs": 1}]}
    fields: dict[str, Any] = {"reduction_factor": 2} if kind == "asha" else {"min_samples": 1}
    spec = sweep(
        base,
        space={NOISE: {"grid": [3.0, 2.0, 1.0, 0.0]}},
        scheduler={"kind": kind, "grace_epochs": 2, **fields},
        limits={"max_concurrent": 1},
    )
    driver = counted(spec, tmp_path, home)
    assert driver.run() == Exit.OK, driver.log()
    cells = {cell.point[NOISE]: cell for cell in driver.cells().values()}
    assert cells[3.0].state is CellState.SUCCEEDED
    assert {cells[noise].state for noise in (2.0, 1.0, 0.0)} == {CellState.PRUNED}
    assert {cells[noise].pruned_epoch for noise in (2.0, 1.0, 0.0)} == {2}
    assert read_json(driver.folder.run(cells[0.0].id).prune) == {"intent": "PRUNED", "epoch": 2}
    assert set(driver.starts().values()) == {1}
    assert driver.run() == Exit.OK
    assert set(driver.starts().values()) == {1}
    assert "best: noise_std=3" in driver.log()


def test_concurrency_changes_while_a_study_runs(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than a second worker takes to begin: Tune gives its run to the first one that is free.
    monkeypatch.setenv("COUNTED_RUN_S", "20")
    limits = {"max_concurrent": 1}
    spec = sweep(space={NOISE: {"grid": NOISES}}, replicates=2, limits=limits)
    driver = counted(spec, tmp_path, home)
    process, most = driver.start(), 0

    def running() -> int:
        nonlocal most
        most = max(most, driver.states().count("RUNNING"))
        return most

    until(lambda: running() == 1 and driver.states().count("SUCCEEDED") >= 1, process)
    assert most == 1
    write_json(driver.folder.limits, {"max_concurrent": 2})
    until(lambda: running() == 2, process)
    write_json(driver.folder.limits, {"max_concurrent": 2, "trials": 1})
    assert process.wait(200) == Exit.OK
    assert "runs did not start: limits.trials (1) is reached" in driver.log()
    assert 2 < driver.states().count("SUCCEEDED") < 12


def test_a_pruned_run_is_killed_in_mlflow_and_the_study_is_not(
    tmp_path: Path, home: Path, mlflow_uri: str
) -> None:
    base = {"optim.epochs": 6, "evals": [{"kind": "knn", "every_epochs": 1}]}
    spec = sweep(
        {**base, "optim.warmup_epochs": 0},
        space={"optim.lr": {"grid": [3e-3, 1e-4]}},
        scheduler={"kind": "asha", "grace_epochs": 2, "reduction_factor": 1.01},
        limits={"max_concurrent": 1},
    )
    driver = Driver(spec, tmp_path, home)
    assert driver.run() == Exit.OK, driver.log()
    good, bad = driver.cells().values()
    assert (good.state, bad.state) == (CellState.SUCCEEDED, CellState.PRUNED)
    assert bad.metrics.keys() == {"val/knn_top1"}
    runs = client(mlflow_uri).search_runs(
        [client(mlflow_uri).get_experiment_by_name("stop").experiment_id]
    )
    status = {run.data.tags["stoplab.cell"]: run.info.status for run in runs}
    assert status == {"parent": "FINISHED", good.id: "FINISHED", bad.id: "KILLED"}
    assert any(run.data.tags.get("stoplab.pruned") for run in runs)
