from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from stoplab_platform.errors import SpecError
from stoplab_platform.exits import Exit
from stoplab_platform.files import write_json
from stoplab_platform.ledger import Cell, CellState, Ledger
from stoplab_platform.specs import SweepSpec
from stoplab_sweeps import search
from stoplab_sweeps.cells import by_point, cells_at, run_of
from stoplab_sweeps.search import propose, suggest
from stoplab_sweeps.study import run_study
from support_studies import Runs, one_by_one, start, summary, sweep

NOISE, RATIO = "positions.noise_std", "masking_ratio"
SPACE = {NOISE: {"uniform": [0.0, 1.0]}, "optim.lr": {"loguniform": [1e-4, 1e-2]}}


def adaptive(samples: int = 6, sampler: str = "tpe", **changes: Any) -> SweepSpec:
    kind = {"kind": "optuna", "samples": samples, "sampler": sampler}
    return sweep(**{"space": SPACE, "search": kind, **changes})


def ran(spec: SweepSpec, cell: Cell) -> Cell:
    """A cell with a score that is best at a noise of 0.3."""
    value = 1 - (cell.point[NOISE] - 0.3) ** 2
    return cell.model_copy(
        update={"state": CellState.SUCCEEDED, "metrics": {spec.objective.metric: value}}
    )


def searched(spec: SweepSpec, so_far: list[Cell] | None = None) -> list[Cell]:
    cells = list(so_far or [])
    while fresh := propose(spec, cells):
        cells += [ran(spec, cell) for cell in fresh]
    return cells


def at(spec: SweepSpec, noise: float, **changes: Any) -> list[Cell]:
    """The cells of one point with fields replaced."""
    point = {NOISE: noise, "optim.lr": 1e-3}
    return [cell.model_copy(update=changes) for cell in cells_at(spec, point, 0)]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_it_finds_its_way_to_the_best(sampler: str) -> None:
    spec = adaptive(20, sampler, space={NOISE: {"uniform": [0.0, 1.0]}})
    cells = searched(spec)
    late = [abs(cell.point[NOISE] - 0.3) for cell in cells[14:]]
    early = [abs(cell.point[NOISE] - 0.3) for cell in cells[:10]]
    assert len(cells) == 20
    assert sorted(late)[2] < min(0.1, sorted(early)[4])


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_an_interrupted_search_draws_the_same_points(sampler: str) -> None:
    spec = adaptive(13, sampler)
    whole = [cell.point for cell in searched(spec)]
    part = searched(adaptive(11, sampler))
    assert [cell.point for cell in searched(spec, part)] == whole
    other = adaptive(3, search={"kind": "optuna", "samples": 3, "seed": 1})
    assert searched(other)[0].point != whole[0]


def test_a_point_is_worth_the_mean_of_its_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = adaptive(replicates=2)
    told: list[Any] = []
    real = search.create_trial
    monkeypatch.setattr(search, "create_trial", lambda **of: told.append(of) or real(**of))
    one, two = at(spec, 0.5, state=CellState.SUCCEEDED)
    one, two = (c.model_copy(update={"metrics": {"val/knn_top1": v}})
                for c, v in ((one, 0.5), (two, 0.7)))  # fmt: skip
    early = at(spec, 0.7, state=CellState.PRUNED, metrics={"val/knn_top1": 0.2}, pruned_epoch=4)
    running = at(spec, 0.6, state=CellState.RUNNING)
    broken = at(spec, 0.1, state=CellState.FAILED)
    never = at(spec, 0.2, state=CellState.INFEASIBLE)
    suggest(spec, by_point([one, two, *early, *running, *broken, *never]))
    assert [(t["state"].name, t.get("value")) for t in told] == [
        ("COMPLETE", pytest.approx(0.6)), ("PRUNED", None), ("RUNNING", None), ("FAIL", None),
        ("PRUNED", None),
    ]  # fmt: skip
    assert told[1]["intermediate_values"] == {4: pytest.approx(0.2)}


def test_a_search_hears_nothing_of_what_other_versions_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec, told = adaptive(), list[Any]()
    real = search.create_trial
    monkeypatch.setattr(search, "create_trial", lambda **of: told.append(of) or real(**of))
    cells = [
        cell.model_copy(update={
            "metrics": {"val/knn_top1": value}, "certificate": {"protocols": f"knn/{version}"},
            "finished_at": datetime(2026, 1, version, tzinfo=UTC),
        })
        for value, noise, version in ((0.9, 0.1, 2), (0.5, 0.5, 3))
        for cell in at(spec, noise, state=CellState.SUCCEEDED)
    ]  # fmt: skip
    suggest(spec, by_point(cells))
    assert [trial["value"] for trial in told] == [0.5]


class TestGaussianProcess:
    """Optuna's reads complete trials only."""

    def test_it_leaves_what_cannot_run(self) -> None:
        space = {NOISE: {"uniform": [0.0, 1.0]}, RATIO: {"uniform": [0.5, 0.95]}}
        spec, cells = adaptive(16, "gp", space=space), list[Cell]()
        while fresh := propose(spec, cells):
            cells += [self.scored(spec, cell) for cell in fresh]
        assert sum(cell.state is CellState.SUCCEEDED for cell in cells) == 16
        assert any(cell.state is CellState.INFEASIBLE for cell in cells)

    def test_it_leaves_where_runs_are_pruned(self) -> None:
        space, cells = {NOISE: {"uniform": [0.0, 1.0]}}, list[Cell]()
        spec = adaptive(20, "gp", space=space)
        while fresh := propose(spec, cells):
            cells += [self.pruned_above(spec, cell, 0.7) for cell in fresh]
        late = cells[10:]
        assert sum(cell.state is CellState.PRUNED for cell in late) < len(late) / 2

    def scored(self, spec: SweepSpec, cell: Cell) -> Cell:
        """Better the higher the ratio, up to where masks no longer fit."""
        if cell.state is CellState.INFEASIBLE:
            return cell
        metrics = {spec.objective.metric: cell.point[RATIO]}
        return cell.model_copy(update={"state": CellState.SUCCEEDED, "metrics": metrics})

    def pruned_above(self, spec: SweepSpec, cell: Cell, noise: float) -> Cell:
        state = CellState.PRUNED if cell.point[NOISE] > noise else CellState.SUCCEEDED
        metrics = {spec.objective.metric: cell.point[NOISE]}
        return cell.model_copy(update={"state": state, "metrics": metrics, "pruned_epoch": 1})


def test_lists_can_be_chosen_from() -> None:
    axis = {"masking.target.scale": {"choice": [[0.2, 0.35], [0.25, 0.4]]}}
    spec = adaptive(2, space=axis)
    found = [cell.point["masking.target.scale"] for cell in by_all(spec)]
    assert sorted(found) == [[0.2, 0.35], [0.25, 0.4]]


def by_all(spec: SweepSpec) -> list[Cell]:
    cells: list[Cell] = []
    while fresh := propose(spec, cells):
        cells += [
            c.model_copy(update={"state": CellState.SUCCEEDED, "metrics": {"val/knn_top1": 0.5}})
            for c in fresh
        ]
    return cells


def test_a_small_space_is_searched_once_and_then_left(caplog: Any) -> None:
    spec = adaptive(9, space={"data.hflip": {"choice": [True, False]}})
    assert sorted(cell.point["data.hflip"] for cell in by_all(spec)) == [False, True]
    assert "finds no new points" in caplog.text


class TestStudy:
    def study(self, spec: SweepSpec, runs: Any, attempt: int = 1) -> Exit:
        return run_study(spec, start(attempt=attempt), schedule=one_by_one, execute=runs)

    def cells(self) -> list[Cell]:
        return Ledger(start().folder).cells()

    def test_points_that_cannot_run_are_written_down_and_others_drawn(self) -> None:
        space = {RATIO: {"choice": [0.2, 0.3, 0.6, 0.65, 0.7]}}
        runs = Runs()
        assert self.study(adaptive(3, space=space), runs) is Exit.OK
        assert len(runs.done) == 3
        states = {cell.point[RATIO]: cell.state for cell in self.cells()}
        assert {r for r, s in states.items() if s is CellState.SUCCEEDED} == {0.6, 0.65, 0.7}
        assert {s for r, s in states.items() if r < 0.5} <= {CellState.INFEASIBLE}

    def test_it_gives_up_where_nothing_can_run(self, caplog: Any) -> None:
        space = {RATIO: {"uniform": [0.05, 0.1]}}
        assert self.study(adaptive(3, space=space), Runs()) is Exit.OK
        assert {cell.state for cell in self.cells()} == {CellState.INFEASIBLE}
        assert len(self.cells()) == 20
        assert "could not run" in caplog.text

    def test_a_stop_ends_it_and_the_next_start_goes_on_as_if_there_was_none(self) -> None:
        spec, runs = adaptive(6), Runs()

        def stopping(spec: Any, folder: Any, identity: Any, *, stop_file: Path) -> Any:
            if len(runs.done) == 2:
                write_json(stop_file, {"intent": "PAUSED"})
            return runs(spec, folder, identity, stop_file=stop_file)

        assert self.study(spec, stopping) is Exit.STOPPED
        start().folder.stop.unlink()
        assert self.study(spec, runs, attempt=2) is Exit.OK
        assert len(runs.done) == len(set(runs.done)) == 6
        points = [cell.point for cell in self.cells()]
        expected = list[Cell]()
        while fresh := propose(spec, expected):
            expected += [self.as_run(spec, cell) for cell in fresh]
        assert points == [cell.point for cell in expected]

    def as_run(self, spec: SweepSpec, cell: Cell) -> Cell:
        metrics = summary(run_of(spec, cell)).metrics
        return cell.model_copy(update={"state": CellState.SUCCEEDED, "metrics": metrics})

    def test_a_limit_leaves_samples_undrawn(self, caplog: Any) -> None:
        write_json(start().folder.limits, {"trials": 2})
        runs = Runs()
        with pytest.raises(SpecError, match=r"limits\.trials: 2: the study has 6 runs"):
            self.study(adaptive(6), runs)
        Ledger(start().folder).plan(propose(adaptive(6), []))  # lowered while it went on
        assert self.study(adaptive(6), runs) is Exit.OK
        assert len(runs.done) == 2
        assert "4 runs did not start: limits.trials (2) is reached" in caplog.text

    def test_more_replicates_run_only_what_is_new(self) -> None:
        runs = Runs()
        self.study(adaptive(3), runs)
        before = self.cells()
        start().folder.spec.unlink()  # the finished cells in the folder of a grown study
        runs.done.clear()
        assert self.study(adaptive(4, replicates=2), runs) is Exit.OK
        assert len(runs.done) == 5
        assert not {cell.id for cell in before} & set(runs.done)
        assert [len(group) for group in by_point(self.cells())] == [2, 2, 2, 2]
        assert [cell.index for cell in self.cells()] == list(range(8))
