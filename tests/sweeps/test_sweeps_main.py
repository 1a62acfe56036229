from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from stoplab_platform.exits import Exit
from stoplab_platform.files import read_json, write_json
from stoplab_platform.ledger import CellState
from stoplab_platform.masks import effective_ratio
from stoplab_platform.paths import JobFolder
from stoplab_platform.specs import ComparisonSpec, SweepSpec, load_spec
from stoplab_platform.tracking import client
from stoplab_sweeps.cells import plan, run_of
from stoplab_sweeps.main import main
from stoplab_sweeps.search import propose
from support_drivers import DEADLINE_S, Driver, until, written
from support_runs import TINY, tiny
from support_studies import comparison, sweep

CONFIGS = Path(__file__).parents[2] / "sweeps" / "configs"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """What an entrypoint does to the log of its process ends with the test."""
    logger = logging.getLogger("stoplab")
    before = list(logger.handlers)
    yield
    logger.handlers[:] = before


class TestBadInput:
    def test_another_kind(self, tmp_path: Path, caplog: Any) -> None:
        assert main([str(written(tmp_path, tiny()))]) is Exit.BAD_INPUT
        assert "sweep or compare" in caplog.text

    def test_a_wrong_override(self, tmp_path: Path, caplog: Any) -> None:
        path = written(tmp_path, comparison())
        assert main([str(path), "--set", "base.optim.lr=-1"]) is Exit.BAD_INPUT
        assert "base.optim.lr" in caplog.text

    def test_no_point_with_masks(self, tmp_path: Path, caplog: Any, home: Path) -> None:
        path = written(tmp_path, sweep(space={"masking_ratio": {"grid": [0.1]}}))
        assert main([str(path)]) is Exit.BAD_INPUT
        assert "out of reach" in caplog.text


class TestConfigs:
    @pytest.mark.parametrize(
        ("config", "runs"),
        [("noise", 5), ("noise_by_masking", 6), ("noise_by_masking_3x3", 18), ("asha", 16)],
    )
    def test_a_sweep_can_run_at_every_point(self, config: str, runs: int) -> None:
        spec = load_spec(CONFIGS / f"{config}.yaml")
        assert isinstance(spec, SweepSpec)
        planned = plan(spec)
        assert all(cell.state is CellState.PENDING for cell in planned)
        assert len({cell.id for cell in planned}) == len(planned) == runs
        for cell in planned:
            run = run_of(spec, cell)
            wanted = cell.point.get("masking_ratio", effective_ratio(run.masking, run.grid))
            assert effective_ratio(run.masking, run.grid) == pytest.approx(wanted, abs=0.01)

    def test_a_run_on_two_gpus_has_two_workers(self) -> None:
        spec = load_spec(CONFIGS / "two_gpus.yaml")
        assert isinstance(spec, SweepSpec)
        compute = run_of(spec, propose(spec, [])[0]).compute
        assert (compute.workers, compute.gpus_per_worker) == (2, 1)

    def test_the_comparison_is_of_stop_and_ijepa(self) -> None:
        spec = load_spec(CONFIGS / "stop_vs_deterministic.yaml")
        assert isinstance(spec, ComparisonSpec)
        kinds = [run_of(spec, cell).positions.kind for cell in plan(spec)]
        assert kinds == ["deterministic", "stochastic"] * len(spec.seeds)


def trial_process(folder: JobFolder, cell: str) -> psutil.Process:
    """The Ray worker that has a cell's log open."""
    log = str(folder.run(cell).rank_log(0))
    for process in psutil.process_iter():
        try:
            if any(file.path == log for file in process.open_files()):
                return process
        except psutil.Error:
            continue
    raise AssertionError(f"nobody writes {log}")


@pytest.mark.ray
@pytest.mark.timeout(900)
class TestUnderTune:
    def test_a_comparison_from_spec_to_verdict(
        self, tmp_path: Path, home: Path, mlflow_uri: str
    ) -> None:
        driver = Driver(comparison({"optim.epochs": 1}, seeds=[0, 1]), tmp_path, home)
        assert driver.run() == Exit.OK, driver.log()
        judged = read_json(driver.folder.comparison)
        assert judged["certificate"]["passed"], judged["certificate"]
        assert {"init", "samples", "crops", "masks", "precision"} <= set(
            judged["certificate"]["streams"]
        )
        assert judged["n_blocks"] == 2
        assert judged["sentence"] in driver.log()
        parent = read_json(driver.folder.tracked)["run_id"]
        for cell in driver.cells().values():
            assert cell.mlflow_run_id in judged["blocks"][cell.seed]["run_ids"].values()
            run = client(mlflow_uri).get_run(str(cell.mlflow_run_id))
            assert run.data.tags["mlflow.parentRunId"] == parent
            assert run.data.tags["stoplab.pair_id"] == f"j_ray-s{cell.seed}"
            assert run.info.status == "FINISHED"
            assert "done" in driver.folder.run(cell.id).rank_log(0).read_text()
        again = time.monotonic()
        assert driver.run() == Exit.OK
        assert time.monotonic() - again < DEADLINE_S
        assert driver.log().count("runs to do") == 1

    @pytest.mark.slow
    def test_a_killed_driver_repeats_no_finished_cell(self, tmp_path: Path, home: Path) -> None:
        spec = comparison({"optim.epochs": 4}, limits={"max_concurrent": 1})
        driver = Driver(spec, tmp_path, home)
        process = driver.start()
        until(lambda: driver.states().count("SUCCEEDED") >= 2, process)
        driver.kill(process)
        done = {id for id, cell in driver.cells().items() if cell.state is CellState.SUCCEEDED}
        before = {id: driver.folder.run(id).summary.stat().st_mtime_ns for id in done}
        started = {id: driver.cells()[id].started_at for id in done}
        assert 2 <= len(done) < 6
        assert driver.run() == Exit.OK, driver.log()
        assert set(driver.states()) == {"SUCCEEDED"}
        assert {i: driver.folder.run(i).summary.stat().st_mtime_ns for i in done} == before
        assert {i: driver.cells()[i].started_at for i in done} == started
        left = [int(number) for number in re.findall(r"(\d+) runs to do", driver.log())]
        # A worker may end what it ran, and say so, in the moment after its driver was killed.
        assert left[0] == 6
        assert 1 <= left[-1] <= 6 - len(done)
        assert read_json(driver.folder.comparison)["certificate"]["passed"]

    @pytest.mark.slow
    def test_a_killed_worker_is_replaced_and_resumes(self, tmp_path: Path, home: Path) -> None:
        base = {"optim.epochs": 40, "checkpoint.every_epochs": 1}
        spec = comparison(base, seeds=[0, 1], limits={"max_concurrent": 1})
        driver = Driver(spec, tmp_path, home)
        process = driver.start()
        run = driver.folder.run("deterministic-s0")
        until(lambda: any(run.checkpoints.glob("step-*")), process)
        trial_process(driver.folder, "deterministic-s0").kill()
        until(lambda: driver.states().count("SUCCEEDED") >= 1, process)
        write_json(driver.folder.stop, {"intent": "CANCELLED", "deadline_s": 5})
        assert process.wait(DEADLINE_S) == Exit.STOPPED, driver.log()
        assert "resumed at step" in run.rank_log(0).read_text()
        assert driver.cells()["deterministic-s0"].state is CellState.SUCCEEDED

    @pytest.mark.slow
    def test_a_pause_stops_running_cells_and_the_next_start_resumes(
        self, tmp_path: Path, home: Path
    ) -> None:
        spec = sweep({"optim.epochs": 300}, replicates=2)
        driver = Driver(spec, tmp_path, home)
        process = driver.start()
        until(lambda: any(driver.folder.root.glob("runs/p*/progress.json")), process)
        asked = time.monotonic()
        write_json(driver.folder.stop, {"intent": "PAUSED", "deadline_s": 60})
        assert process.wait(DEADLINE_S) == Exit.STOPPED, driver.log()
        assert time.monotonic() - asked < 60
        assert set(driver.states()) <= {"STOPPED", "PENDING", "INFEASIBLE"}
        assert "STOPPED" in driver.states()
        first = next(cell.id for cell in plan(spec) if cell.state is CellState.PENDING)
        (saved,) = driver.folder.run(first).checkpoints.glob("step-*/state.pt")
        assert saved.stat().st_size > 0

    @pytest.mark.slow
    def test_cells_of_two_workers_train_under_ray_train(self, tmp_path: Path, home: Path) -> None:
        base = {"optim.epochs": 1, "compute.workers": 2, "compute.cpus_per_worker": 0.5}
        spec = sweep(base, space={"positions.noise_std": {"grid": [0.1]}})
        driver = Driver(spec, tmp_path, home)
        assert driver.run() == Exit.OK, driver.log()
        (cell,) = driver.cells().values()
        assert cell.metrics["val/knn_top1"] > 0.1
        assert (driver.folder.run(cell.id).logs / "rank-1.log").exists()

    @pytest.mark.slow
    def test_a_run_that_fails_does_not_stop_the_others(self, tmp_path: Path, home: Path) -> None:
        missing = {"a": {}, "b": {"data.train": str(tmp_path / "no-such-{0..3}.tar")}}
        base = {
            **TINY,
            "data": {**TINY["data"], "eval": {"train": "digits/train", "test": "digits/test"}},
        }
        spec = comparison({"optim.epochs": 1, "data": base["data"]}, arms=missing, seeds=[0, 1])
        driver = Driver(spec, tmp_path, home)
        assert driver.run() == Exit.FAILED
        states = {id: cell.state.value for id, cell in driver.cells().items()}
        assert states == {
            "a-s0": "SUCCEEDED",
            "b-s0": "FAILED",
            "a-s1": "SUCCEEDED",
            "b-s1": "FAILED",
        }
        assert "DataMissing" in str(driver.cells()["b-s0"].error)
        assert "no-such" in driver.log()
