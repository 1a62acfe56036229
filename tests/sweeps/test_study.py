from __future__ import annotations

import csv
import os
import re
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from stoplab_platform.adoption import adopt_cells
from stoplab_platform.errors import SpecError, Stopped
from stoplab_platform.exits import Exit
from stoplab_platform.files import read_json, write_json
from stoplab_platform.ledger import Cell, CellState, Ledger
from stoplab_platform.paths import JobFolder
from stoplab_platform.tracking import client
from stoplab_sweeps.cells import plan
from stoplab_sweeps.feed import Feed
from stoplab_sweeps.study import run_study
from stoplab_sweeps.watch import Watch
from stoplab_trainers.launch import execute
from stoplab_trainers.summary import Summary
from support_studies import Runs, comparison, one_by_one, start, summary, sweep

DEADLINE_S = 240


def states(folder: JobFolder) -> dict[str, str]:
    return {cell.id: cell.state.value for cell in Ledger(folder).cells()}


def study(spec: Any, runs: Any, schedule: Any = one_by_one, **of: Any) -> Exit:
    return run_study(spec, start(**of), schedule=schedule, execute=runs)


class TestComparison:
    def test_it_runs_every_cell_block_by_block_and_judges(self, capsys: Any) -> None:
        runs = Runs()
        assert study(comparison(), runs) is Exit.OK
        assert runs.done == [
            f"{a}-s{s}" for s in (0, 1, 2) for a in ("deterministic", "stochastic")
        ]
        folder = start().folder
        judged = read_json(folder.comparison)
        assert judged["verdict"] == "better"
        assert judged["delta"] == pytest.approx(0.025)
        assert judged["certificate"]["passed"]
        assert judged["sentence"] in folder.comparison_page.read_text()
        assert judged["sentence"] in capsys.readouterr().out
        progress = read_json(folder.progress)
        assert (progress["step"], progress["steps"], progress["epoch"]) == (6, 6, 0)

    def test_what_succeeded_never_runs_again_and_what_failed_does(self) -> None:
        runs = Runs({"stochastic-s1": RuntimeError("out of luck")})
        assert study(comparison(), runs) is Exit.FAILED
        folder = start().folder
        assert states(folder)["stochastic-s1"] == "FAILED"
        assert Ledger(folder).get("stochastic-s1").error == "RuntimeError: out of luck"
        assert read_json(folder.comparison)["n_blocks"] == 2
        runs.done.clear()
        assert study(comparison(), runs, attempt=2) is Exit.OK
        assert runs.done == ["stochastic-s1"]
        cell = Ledger(folder).get("stochastic-s1")
        assert (cell.state, cell.error) == (CellState.SUCCEEDED, None)
        assert read_json(folder.comparison)["n_blocks"] == 3

    def test_a_finished_study_runs_nothing_and_still_answers(self) -> None:
        study(comparison(), Runs())
        start().folder.comparison.unlink()
        runs = Runs()
        assert study(comparison(), runs) is Exit.OK
        assert runs.done == []
        assert read_json(start().folder.comparison)["verdict"] == "better"

    def test_a_stop_ends_it_and_the_next_start_goes_on(self) -> None:
        runs = Runs({"stochastic-s0": Stopped("PAUSED", 12)})
        assert study(comparison(), runs) is Exit.STOPPED
        folder = start().folder
        assert list(states(folder).values()) == ["SUCCEEDED", "STOPPED", *["PENDING"] * 4]
        folder.stop.unlink()
        assert study(comparison(), runs, attempt=2) is Exit.OK
        assert runs.done.count("deterministic-s0") == 1
        assert runs.done.count("stochastic-s0") == 2

    def test_a_run_whose_machine_is_taken_away_goes_on_from_the_step_that_was_saved(self) -> None:
        told: list[object] = []

        def preempted_once(*of: Any, **named: Any) -> Summary:
            def terminate(progress: dict[str, object]) -> None:
                if not told:
                    told.append(progress["step"])
                    os.kill(os.getpid(), signal.SIGTERM)

            return execute(*of, on_progress=terminate, **named)

        assert study(comparison(seeds=[0, 1]), preempted_once) is Exit.OK
        folder = start().folder
        assert set(states(folder).values()) == {"SUCCEEDED"}
        log = folder.run("deterministic-s0").rank_log(0).read_text()
        (saved,) = map(int, re.findall(r"resumed at step (\d+)", log))
        assert told == [saved]
        assert read_json(folder.comparison)["certificate"]["passed"]

    def test_a_killed_start_ran_until_it_was_last_heard_of(self) -> None:
        folder, spec = start().folder, comparison()
        ledger, begun = Ledger(folder), datetime(2026, 1, 1, tzinfo=UTC)
        ledger.plan(plan(spec))
        for cell_id in ("deterministic-s0", "stochastic-s0"):
            ledger.update(cell_id, at=begun, state=CellState.RUNNING)
        heard = folder.run("deterministic-s0").progress
        write_json(heard, {})
        os.utime(heard, (begun.timestamp() + 60,) * 2)
        assert study(spec, Runs(), attempt=2) is Exit.OK
        assert 60 <= ledger.get("deterministic-s0").ran_s < 120
        assert ledger.get("stochastic-s0").ran_s < 60

    def test_a_broken_pairing_fails_the_job(self) -> None:
        def unpaired(spec: Any, folder: Any, identity: Any, *, stop_file: Path) -> Any:
            left = summary(spec)
            left.certificate["init"] = spec.positions.kind
            return left

        assert study(comparison(), unpaired) is Exit.FAILED
        assert read_json(start().folder.comparison)["verdict"] == "refused"

    def test_a_metric_that_is_not_finite_is_missing(self) -> None:
        def broken(spec: Any, folder: Any, identity: Any, *, stop_file: Path) -> Any:
            left = summary(spec)
            left.metrics["train/loss"] = float("nan")
            return left

        assert study(comparison(), broken) is Exit.OK
        assert "train/loss" not in Ledger(start().folder).get("stochastic-s0").metrics

    def test_another_study_in_the_same_folder_is_refused(self) -> None:
        study(comparison(), Runs())
        with pytest.raises(SpecError, match="another study"):
            study(comparison(seeds=[0, 1]), Runs())

    def test_a_lost_process_is_a_failed_cell(self) -> None:
        def lost(feed: Feed, *_: Any) -> None:
            cell = feed.next()
            assert isinstance(cell, Cell)
            Ledger(start().folder).update(cell.id, state=CellState.RUNNING)

        assert study(comparison(), Runs(), schedule=lost) is Exit.FAILED
        assert "died more often than 3 times" in str(
            Ledger(start().folder).get("deterministic-s0").error
        )


class TestSweep:
    def test_infeasible_points_are_reported_and_the_rest_runs(self, capsys: Any) -> None:
        runs = Runs()
        assert study(sweep(), runs) is Exit.OK
        assert runs.done == [cell.id for cell in plan(sweep()) if cell.state == "PENDING"]
        assert len(runs.done) == 2
        out = capsys.readouterr().out
        assert "out of reach" in out
        best_first = [line for line in out.splitlines() if "ratio=0.6" in line and "0.5" in line]
        assert best_first[0].startswith("noise_std=0.25 ratio=0.6  0.5250")
        with start().folder.trials.open() as file:
            rows = list(csv.DictReader(file))
        assert [row["state"] for row in rows] == ["INFEASIBLE", "SUCCEEDED"] * 2
        assert rows[3]["positions.noise_std"] == "0.25"
        assert float(rows[3]["val/knn_top1"]) == pytest.approx(0.525)

    def test_a_grown_sweep_runs_only_its_new_cells(self, tmp_path: Path) -> None:
        noise = "positions.noise_std"
        small, grown = ([0.1, 0.3], [0.0, 0.1, 0.2, 0.3])
        study(sweep(space={noise: {"grid": small}}), Runs(), job_id="j_old")
        adopt_cells(start("j_old").folder, start("j_new").folder)
        spec, runs = sweep(space={noise: {"grid": grown}}, replicates=2), Runs()
        assert study(spec, runs, job_id="j_new") is Exit.OK
        assert len(runs.done) == 6
        cells = Ledger(start("j_new").folder).cells()
        assert [(c.point[noise], c.seed) for c in cells] == [(g, s) for s in (0, 1) for g in grown]
        assert [cell.index for cell in cells] == list(range(8))
        assert {cell.id for cell in cells if cell.adopted} == {
            cell.id for cell in cells if cell.seed == 0 and cell.point[noise] in small
        }
        assert not {cell.id for cell in cells if cell.adopted} & set(runs.done)

    def test_failed_cells_run_again_and_others_do_not(self) -> None:
        spec = sweep(space={"positions.noise_std": {"grid": [0.1, 0.2, 0.3]}})
        bad = plan(spec)[1].id
        runs = Runs({bad: RuntimeError("out of luck")})
        assert study(spec, runs) is Exit.FAILED
        runs.done.clear()
        assert study(spec, runs, attempt=2) is Exit.OK
        assert runs.done == [bad]

    def test_progress_names_the_best_so_far(self, caplog: Any) -> None:
        caplog.set_level("INFO", "stoplab")
        spec = sweep(space={"positions.noise_std": {"grid": [0.1, 0.3]}}, replicates=2)
        study(spec, Runs())
        best = read_json(start().folder.progress)["best"]
        assert best == {
            "point": {"positions.noise_std": 0.3},
            "mean": pytest.approx(0.53), "ci95": pytest.approx([0.53, 0.53]), "n": 2,
            "tied": None, "n_points": 2, "n_unjudged": 1,
        }  # fmt: skip
        assert "(best so far 0.5300 at noise_std=0.3)" in caplog.text

    def test_replicates_are_averaged(self, capsys: Any) -> None:
        study(sweep(replicates=2, space={"positions.noise_std": {"grid": [0.1, 0.3]}}), Runs())
        line = next(
            x for x in capsys.readouterr().out.splitlines() if x.startswith("noise_std=0.3")
        )
        assert line.split() == ["noise_std=0.3", "0.5300", "0.0000", "2"]


class TestTracking:
    def test_parent_and_cells_are_one_family(self, mlflow_uri: str) -> None:
        runs = Runs()
        study(comparison(), runs)
        parent = read_json(start().folder.tracked)["run_id"]
        assert {identity.parent_run_id for identity in runs.identities} <= {parent, None}
        first = runs.identities[0]
        assert (first.arm, first.pair_id, first.cell) == (
            "deterministic", "j_study-s0", "deterministic-s0",
        )  # fmt: skip
        run = client(mlflow_uri).get_run(parent)
        assert run.info.status == "FINISHED"
        assert run.data.tags["stoplab.job_id"] == "j_study"
        assert run.data.metrics["compare/delta"] == pytest.approx(0.025)
        kept = {file.path for file in client(mlflow_uri).list_artifacts(parent)}
        assert kept >= {"comparison.json", "comparison.md", "trials.csv"}

    @pytest.mark.parametrize(("intent", "status"), [("CANCELLED", "KILLED"), ("PAUSED", "RUNNING")])
    def test_a_stopped_study_and_its_next_start_are_one_run(
        self, mlflow_uri: str, intent: str, status: str
    ) -> None:
        runs = Runs({"stochastic-s0": Stopped(intent, 1)})
        study(comparison(), runs)
        parent = read_json(start().folder.tracked)["run_id"]
        assert client(mlflow_uri).get_run(parent).info.status == status
        start().folder.stop.unlink()
        study(comparison(), runs, attempt=2)
        assert read_json(start().folder.tracked)["run_id"] == parent
        assert client(mlflow_uri).get_run(parent).info.status == "FINISHED"

    def test_a_failed_study_is_failed(self, mlflow_uri: str) -> None:
        study(comparison(), Runs({"stochastic-s0": ValueError("no")}))
        parent = read_json(start().folder.tracked)["run_id"]
        assert client(mlflow_uri).get_run(parent).info.status == "FAILED"

    def test_mlflow_being_away_costs_the_study_nothing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        monkeypatch.setattr("stoplab_sweeps.study.DRAIN_S", 0.0)
        monkeypatch.setattr("stoplab_sweeps.parent.CLOSE_S", 0.1)
        assert study(comparison(), Runs()) is Exit.OK
        assert start().folder.run("parent").spool.exists()


class TestWatch:
    def test_progress_counts_cells_and_says_each_change_once(self) -> None:
        folder, lines = start().folder, list[str]()
        ledger = Ledger(folder)
        ledger.plan([Cell(id=f"a-s{i}", index=i, arm="a", seed=i) for i in range(4)])
        ledger.update("a-s3", state=CellState.INFEASIBLE, error="no masks")
        watch = Watch(comparison(primary={"metric": "val/knn_top1"}), folder, lines.append)
        watch.look()
        assert lines == []
        ledger.update("a-s0", state=CellState.RUNNING)
        write_json(folder.run("a-s0").progress, {"step": 50, "steps": 100})
        watch.look()
        watch.look()
        progress = read_json(folder.progress)
        assert (progress["step"], progress["steps"]) == (0, 3)
        assert progress["eta_s"] is not None
        ledger.update("a-s0", state=CellState.SUCCEEDED, metrics={"val/knn_top1": 0.7})
        ledger.update("a-s1", state=CellState.FAILED, error="ValueError: no")
        watch.look()
        assert read_json(folder.progress)["step"] == 2
        assert lines == [
            "[1/4] a s0  started",
            "[1/4] a s0  done  val/knn_top1 0.7000",
            "[2/4] a s1  started",
            "[2/4] a s1  failed  ValueError: no",
        ]
