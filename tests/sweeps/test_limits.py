from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from stoplab_platform.exits import Exit
from stoplab_platform.files import write_json
from stoplab_platform.ledger import Cell, CellState, Ledger
from stoplab_platform.resources import Resources
from stoplab_platform.specs import ComparisonSpec
from stoplab_platform.specs.run import ComputeSpec
from stoplab_platform.specs.sweep import LimitsSpec
from stoplab_sweeps.cells import plan
from stoplab_sweeps.feed import Feed, Say
from stoplab_sweeps.limits import current_limits, full, spent
from stoplab_sweeps.study import run_study
from stoplab_sweeps.tuning import concurrency
from support_studies import Runs, comparison, finished, one_by_one, start, sweep

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOISES = {"positions.noise_std": {"grid": [0.1, 0.2, 0.3, 0.4]}}


def cells(*hours: float) -> list[Cell]:
    return [
        finished("a", i, 0.5, started_at=NOW - timedelta(hours=h), finished_at=NOW, ran_s=h * 3600)
        for i, h in enumerate(hours)
    ]


class TestSpent:
    def test_hours_on_the_clock(self) -> None:
        limits = LimitsSpec(wall_hours=2)
        assert spent(limits, ComputeSpec(), cells(1.9), NOW) is None
        reached = "limits.wall_hours (2) is reached"
        assert spent(limits, ComputeSpec(), cells(2.1, 0.1), NOW) == reached

    def test_gpu_hours_count_every_gpu(self) -> None:
        limits, two = LimitsSpec(gpu_hours=8), ComputeSpec(gpus_per_worker=1, workers=2)
        assert spent(limits, two, cells(2, 1.9), NOW) is None
        assert spent(limits, two, cells(2, 2), NOW) == "limits.gpu_hours (8) is reached"
        assert spent(limits, ComputeSpec(), cells(99), NOW) is None

    def test_a_pause_costs_no_gpu_hours(self) -> None:
        limits, one = LimitsSpec(gpu_hours=3), ComputeSpec(gpus_per_worker=1)
        ledger = Ledger(start().folder)
        ledger.plan([Cell(id="a", index=0, arm="a", seed=0)])
        for hours, state in ((0, CellState.RUNNING), (1, CellState.STOPPED)):
            ledger.update("a", at=NOW + timedelta(hours=hours), state=state)
        assert spent(limits, one, ledger.cells(), NOW + timedelta(hours=9)) is None
        cell = ledger.update("a", at=NOW + timedelta(hours=9), state=CellState.RUNNING)
        assert (cell.started_at, cell.ran_s) == (NOW, 3600)
        assert spent(limits, one, [cell], NOW + timedelta(hours=10)) is None
        assert spent(limits, one, [cell], NOW + timedelta(hours=11)) is not None

    def test_what_an_earlier_job_ran_costs_nothing_here(self) -> None:
        limits = LimitsSpec(wall_hours=2, trials=2)
        old = [cell.model_copy(update={"adopted": True}) for cell in cells(99, 98)]
        assert spent(limits, ComputeSpec(), old, NOW) is None
        assert full(limits, old) == "limits.trials (2) is reached"
        assert full(limits, old[:1]) is None


class TestCurrent:
    def test_the_folder_overrules_the_spec(self) -> None:
        folder, limits = start().folder, LimitsSpec(trials=9, max_concurrent=2)
        assert current_limits(limits, folder) == limits
        write_json(folder.limits, {"max_concurrent": None, "wall_hours": 3})
        assert current_limits(limits, folder) == LimitsSpec(trials=9, wall_hours=3)

    def test_a_broken_file_is_passed_over(self, caplog: Any) -> None:
        write_json(start().folder.limits, {"trials": "many"})
        assert current_limits(LimitsSpec(trials=9), start().folder).trials == 9
        assert "is passed over" in caplog.text


class TestFeed:
    def feed(self, spec: Any) -> Feed:
        Ledger(start().folder).plan(plan(spec))
        return Feed(spec, start().folder)

    def take(self, feed: Feed) -> str:
        cell = feed.next()
        assert isinstance(cell, Cell), cell
        Ledger(start().folder).update(cell.id, state=CellState.RUNNING)
        return cell.id

    def end(self, feed: Feed, cell_id: str) -> None:
        Ledger(start().folder).update(cell_id, state=CellState.SUCCEEDED)
        feed.ended(cell_id)

    def test_as_many_at_a_time_as_are_allowed_just_now(self) -> None:
        feed = self.feed(sweep(space=NOISES, limits={"max_concurrent": 1}))
        first = self.take(feed)
        assert feed.next() is Say.WAIT
        write_json(start().folder.limits, {"max_concurrent": 3})
        self.take(feed)
        self.take(feed)
        assert feed.next() is Say.WAIT
        write_json(start().folder.limits, {"max_concurrent": 1})
        self.end(feed, first)
        assert feed.next() is Say.WAIT

    def test_no_cell_twice_in_one_start(self) -> None:
        feed = self.feed(sweep(space=NOISES))
        taken = [self.take(feed) for _ in range(4)]
        assert len(set(taken)) == 4
        Ledger(start().folder).update(taken[0], state=CellState.FAILED)
        feed.ended(taken[0])
        assert feed.next() is Say.OVER
        assert Feed(sweep(space=NOISES), start().folder).next() is not Say.OVER

    def test_a_limit_that_is_raised_in_time_lets_more_begin(self) -> None:
        feed = self.feed(sweep(space=NOISES))
        write_json(start().folder.limits, {"trials": 1})
        first = self.take(feed)
        assert feed.next() is Say.WAIT
        write_json(start().folder.limits, {"trials": 2})
        self.end(feed, first)
        second = self.take(feed)
        self.end(feed, second)
        assert feed.next() is Say.OVER
        assert feed.reached(Ledger(start().folder).cells()) == "limits.trials (2) is reached"

    def test_places_that_are_free_at_once_take_no_more_than_are_allowed(self) -> None:
        feed = self.feed(sweep(space=NOISES))
        write_json(start().folder.limits, {"trials": 2})
        given = [feed.next() for _ in range(3)]  # none of them has said yet that it runs
        assert [isinstance(cell, Cell) for cell in given] == [True, True, False]

    def test_a_reached_limit_on_runs_keeps_no_begun_one_from_going_on(self) -> None:
        feed = self.feed(sweep(space=NOISES))
        write_json(start().folder.limits, {"trials": 1})
        stopped = self.take(feed)
        Ledger(start().folder).update(stopped, state=CellState.STOPPED)
        assert self.take(Feed(sweep(space=NOISES), start().folder)) == stopped

    def test_a_block_is_not_split(self) -> None:
        feed = self.feed(comparison())
        write_json(start().folder.limits, {"trials": 1})
        assert self.take(feed) == "deterministic-s0"
        assert self.take(feed) == "stochastic-s0"
        assert feed.next() is Say.WAIT
        self.end(feed, "deterministic-s0")
        self.end(feed, "stochastic-s0")
        assert feed.next() is Say.OVER

    def test_nothing_starts_after_a_stop(self) -> None:
        feed = self.feed(comparison())
        write_json(start().folder.stop, {"intent": "CANCELLED"})
        assert feed.next() is Say.OVER


def limited(spec: Any, runs: Runs) -> Exit:
    return run_study(spec, start(), schedule=one_by_one, execute=runs)


def test_a_reached_limit_starts_no_more_cells(caplog: Any) -> None:
    runs = Runs()
    assert limited(sweep(space=NOISES, limits={"wall_hours": 1e-12}), runs) is Exit.OK
    assert len(runs.done) == 1
    assert "3 runs did not start: limits.wall_hours" in caplog.text


def test_a_run_that_failed_is_no_planned_end() -> None:
    spec = sweep(space=NOISES, limits={"wall_hours": 1e-12})
    runs = Runs({plan(spec)[0].id: RuntimeError("broken")})
    assert limited(spec, runs) is Exit.FAILED


def test_a_comparison_ends_with_whole_blocks(caplog: Any) -> None:
    runs, spec = Runs(), comparison(limits={"wall_hours": 1e-12})
    assert isinstance(spec, ComparisonSpec)
    assert limited(spec, runs) is Exit.FAILED
    assert runs.done == ["deterministic-s0", "stochastic-s0"]
    assert "4 runs did not start: limits.wall_hours" in caplog.text


@pytest.mark.parametrize(
    ("compute", "cluster", "at_once"),
    [
        ({}, Resources(4), 4),
        ({"cpus_per_worker": 2}, Resources(5), 2),
        ({"workers": 2, "cpus_per_worker": 2}, Resources(9), 2),
        ({"gpus_per_worker": 0.5}, Resources(64, 1), 2),
        ({"cpus_per_worker": 8}, Resources(2), 1),
    ],
)
def test_as_many_as_fit(compute: dict[str, Any], cluster: Resources, at_once: int) -> None:
    assert concurrency(ComputeSpec(**compute), cluster, LimitsSpec()) == at_once


def test_a_cluster_that_grows_holds_what_was_asked_for() -> None:
    assert concurrency(ComputeSpec(), Resources(0), LimitsSpec(max_concurrent=8)) == 8
    assert concurrency(ComputeSpec(), Resources(16), LimitsSpec(max_concurrent=8)) == 16
