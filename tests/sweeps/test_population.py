from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from stoplab_platform.adoption import adopt_cells
from stoplab_platform.errors import SpecError, Stopped
from stoplab_platform.exits import Exit
from stoplab_platform.extend import extended
from stoplab_platform.ledger import Cell, CellState, Ledger
from stoplab_platform.specs import SweepSpec, parse_spec
from stoplab_platform.specs.sweep import Axis
from stoplab_sweeps.best import best_of
from stoplab_sweeps.cells import expected, plan, unfinished
from stoplab_sweeps.feed import Feed, Say
from stoplab_sweeps.population import (
    explored,
    interrupted,
    lineage,
    moved,
    next_generation,
    schedule,
)
from stoplab_sweeps.report import sweep_table
from stoplab_sweeps.study import run_study
from stoplab_sweeps.surface_rows import surface_of
from support_studies import Runs, one_by_one, start, sweep

METRIC = "val/knn_top1"
NOISE = "positions.noise_std"


def population(**changes: Any) -> SweepSpec:
    return sweep(
        {"optim.epochs": 5, "optim.warmup_epochs": 1},
        space={NOISE: {"uniform": [0.0, 1.0]}, "optim.lr": {"loguniform": [1e-4, 1e-2]}},
        search={"kind": "random", "samples": 8},
        scheduler={"kind": "pbt", "interval_epochs": 2, **changes},
    )


def ended(cells: list[Cell], values: list[float]) -> list[Cell]:
    return [
        cell.model_copy(update={"state": CellState.SUCCEEDED, "metrics": {METRIC: value}})
        for cell, value in zip(cells, values, strict=True)
    ]


RISING = [0.1 * i for i in range(8)]


def test_the_first_generation_is_planned_and_the_rest_is_expected() -> None:
    spec = population()
    first = plan(spec)
    assert [(c.id, c.generation, c.member, c.parent) for c in first] == [
        (f"g0-m{i}", 0, i, None) for i in range(8)
    ]
    assert len({c.seed for c in first}) == 1
    assert spec.generations() == 3  # 5 epochs: two, two, one
    assert expected(spec) == 24


def test_those_behind_go_on_from_those_ahead_and_the_rest_as_they_are() -> None:
    spec = population()
    first = ended(plan(spec), RISING)
    second = next_generation(spec, first)
    assert [c.id for c in second] == [f"g1-m{i}" for i in range(8)]
    for cell in second[2:]:
        assert cell.parent == f"g0-m{cell.member}"
        assert cell.point == first[cell.member or 0].point
    for cell in second[:2]:
        assert cell.parent in {"g0-m6", "g0-m7"}
        assert cell.point not in [c.point for c in first]
    assert next_generation(spec, first) == second


def test_of_a_smaller_is_better_metric_the_large_ones_are_behind() -> None:
    spec = population()
    data = {**spec.plain(), "objective": {"metric": METRIC, "mode": "min"}}
    spec = SweepSpec.model_validate(data)
    second = next_generation(spec, ended(plan(spec), RISING))
    assert {c.parent for c in second[6:]} <= {"g0-m0", "g0-m1"}


@pytest.mark.parametrize("state", [CellState.PENDING, CellState.RUNNING, CellState.STOPPED])
def test_a_generation_waits_for_its_last_member(state: CellState) -> None:
    first = ended(plan(population()), RISING)
    first[3] = first[3].model_copy(update={"state": state})
    assert next_generation(population(), first) == []


@pytest.mark.parametrize("state", [CellState.FAILED, CellState.INFEASIBLE])
def test_one_that_could_not_run_is_behind_all(state: CellState) -> None:
    spec = population()
    first = ended(plan(spec), RISING)
    first[7] = first[7].model_copy(update={"state": state, "metrics": {}})
    second = next_generation(spec, first)
    assert second[7].parent in {"g0-m5", "g0-m6"}
    assert second[0].parent not in {None, "g0-m0"}
    assert second[1].parent == "g0-m1", "the failed one is one of the two that are behind"
    assert state is CellState.INFEASIBLE or first[7] in unfinished(first)
    assert first[7] not in unfinished([*first, *second])


def test_nothing_goes_on_from_nothing() -> None:
    first = [c.model_copy(update={"state": CellState.FAILED}) for c in plan(population())]
    assert next_generation(population(), first) == []


def test_it_ends_after_the_last_epoch() -> None:
    spec = population()
    cells = ended(plan(spec), RISING)
    for generation in (1, 2):
        fresh = next_generation(spec, cells)
        assert {c.generation for c in fresh} == {generation}
        cells = [*cells, *ended(fresh, RISING)]
    assert next_generation(spec, cells) == []
    assert len(cells) == expected(spec)
    way = lineage(cells, cells[-1])
    assert [c.generation for c in way] == [0, 1, 2]
    assert way[-1] is cells[-1]


def test_a_half_planned_generation_is_planned_again() -> None:
    spec = population()
    first = ended(plan(spec), RISING)
    second = next_generation(spec, first)
    assert interrupted(spec, first) == []
    assert interrupted(spec, [*first, *second[:3]]) == second


def test_the_best_is_one_of_the_newest_complete_generation() -> None:
    spec = population()
    first = ended(plan(spec), [0.9, *RISING[1:]])
    second = next_generation(spec, first)
    cells = [*first, *ended(second, [0.5] * 7 + [0.6])]
    found = best_of(spec, cells)
    assert found is not None
    assert found.best.mean == 0.6
    half = best_of(spec, [*first, *ended(second[:3], [0.99] * 3), *second[3:]])
    assert half is not None
    assert half.best.mean == 0.9
    words = schedule(spec, cells).splitlines()
    assert words[0].startswith("epochs 0-2: noise_std=")
    assert words[1].startswith("epochs 2-4: noise_std=")
    assert "(g1-m7)" in words[1]
    assert len(sweep_table(spec, cells).splitlines()) == 9
    assert surface_of(spec, cells)["reason"] == (
        "the runs of a population change their points on the way"
    )


def test_numbers_move_by_a_fifth_inside_their_range_and_lists_by_one_place() -> None:
    uniform = Axis(uniform=(0.0, 1.0))
    assert moved(uniform, 0.5, up=True) == pytest.approx(0.6)
    assert moved(uniform, 0.5, up=False) == pytest.approx(0.4)
    assert moved(uniform, 0.9, up=True) == 1.0
    assert moved(Axis(int=(1, 9)), 2, up=True) == 3
    assert moved(Axis(int=(1, 9)), 1, up=False) == 1
    listed = Axis(choice=("a", "b", "c"))
    assert [moved(listed, v, up=True) for v in "abc"] == ["b", "c", "c"]
    assert [moved(listed, v, up=False) for v in "abc"] == ["a", "a", "b"]


def test_values_are_drawn_anew_as_often_as_the_spec_says() -> None:
    point = {NOISE: 0.5, "optim.lr": 1e-3}
    rng = np.random.default_rng(0)
    near = {0.4, 0.6}
    for share, spec in ((s, population(resample=s)) for s in (0.0, 0.25, 1.0)):
        values = [round(explored(spec, point, rng)[NOISE], 9) for _ in range(400)]
        fresh = sum(value not in near for value in values) / 400
        assert fresh == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"search": {"kind": "optuna", "samples": 8}}, "scheduler.kind"),
        ({"replicates": 2}, "replicates"),
        ({"scheduler": {"kind": "pbt", "interval_epochs": 5}}, "scheduler.interval_epochs"),
        ({"space": {"model.width": {"choice": [16, 32]}}}, "space.model.width"),
        ({"space": {"optim.batch_size": {"choice": [16, 32]}}}, "space.optim.batch_size"),
        ({"space": {"optim.betas.0": {"choice": [0.8, 0.9]}}}, "space.optim.betas.0"),
    ],
)
def test_what_a_population_cannot_do_is_said(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as found:
        parse_spec({**population().plain(), **changes})
    assert field in {".".join(map(str, p.path)) for p in found.value.problems}


def test_a_study_runs_generation_by_generation_over_any_number_of_starts() -> None:
    spec = population()
    stop = start().folder.stop
    first = Runs({"g1-m4": Stopped("PAUSED", 1)})
    assert run_study(spec, start(), schedule=one_by_one, execute=first) is Exit.STOPPED
    assert len(first.done) == 13
    stop.unlink()
    second = Runs()
    assert run_study(spec, start(attempt=2), schedule=one_by_one, execute=second) is Exit.OK
    assert [*first.done[:12], *second.done] == [f"g{g}-m{m}" for g in range(3) for m in range(8)]
    cells = Ledger(start().folder).cells()
    for cell in cells[8:]:
        leg = {**first.legs, **second.legs}[cell.id]
        assert leg is not None
        assert leg.until_epoch == 2 * ((cell.generation or 0) + 1)
        assert leg.after == start().folder.run(str(cell.parent)).root
    assert "generation,member,parent" in start().folder.trials.read_text().splitlines()[0]
    tags = second.identities[-1].tags
    assert (tags["stoplab.generation"], tags["stoplab.member"]) == ("2", "7")


def test_a_member_that_fails_is_replaced_and_fails_no_study() -> None:
    runs = Runs({"g0-m2": ValueError("the loss is nan")})
    assert run_study(population(), start(), schedule=one_by_one, execute=runs) is Exit.OK
    cell = Ledger(start().folder).get("g1-m2")
    assert cell.parent != "g0-m2"
    assert cell.state is CellState.SUCCEEDED


def test_members_at_one_point_are_told_apart() -> None:
    spec = population()
    first = ended(plan(spec), RISING)
    second = ended(next_generation(spec, first), [0.5, 0.9, *[0.6] * 6])
    second[2] = second[2].model_copy(update={"point": second[1].point})
    found = best_of(spec, [*first, *second])
    assert found is not None
    assert (found.best.mean, found.n_points) == (0.9, 8)
    table = sweep_table(spec, [*first, *second])
    assert "g1-m1 0.9000 1" in " ".join(table.split())


def test_a_member_that_runs_again_is_waited_for() -> None:
    spec, folder = population(), start().folder
    cells = ended(plan(spec), RISING)
    Ledger(folder).plan([*cells[:7], cells[7].model_copy(update={"state": CellState.FAILED})])
    feed = Feed(spec, folder, functools.partial(next_generation, spec))
    again = feed.next()
    assert isinstance(again, Cell)
    assert again.id == "g0-m7"
    assert feed.next() is Say.WAIT
    Ledger(folder).update("g0-m7", state=CellState.SUCCEEDED, metrics={METRIC: 0.01})
    feed.ended("g0-m7")
    fresh = feed.next()
    assert isinstance(fresh, Cell)
    assert fresh.id == "g1-m0"
    assert Ledger(folder).get("g1-m7").parent != "g0-m7"


def test_a_member_whose_process_is_lost_has_failed() -> None:
    spec, folder = population(), start().folder
    Ledger(folder).plan(ended(plan(spec), RISING))
    Ledger(folder).update("g0-m7", state=CellState.PENDING)
    feed = Feed(spec, folder, functools.partial(next_generation, spec))
    assert isinstance(feed.next(), Cell)
    Ledger(folder).update("g0-m7", state=CellState.RUNNING)
    feed.ended("g0-m7")
    assert "died more often" in str(Ledger(folder).get("g0-m7").error)
    fresh = feed.next()
    assert isinstance(fresh, Cell)
    assert fresh.id == "g1-m0"


def test_a_retry_takes_the_population_over_with_its_checkpoints() -> None:
    spec = population()
    runs = Runs({"g0-m2": ValueError("nan"), "g1-m5": Stopped("PAUSED", 1)})
    assert run_study(spec, start("j_old"), schedule=one_by_one, execute=runs) is Exit.STOPPED
    old, new = start("j_old").folder, start("j_new").folder
    file = old.run("g0-m0").checkpoints / "step-00000001" / "state.pt"
    file.parent.mkdir(parents=True)
    file.write_text("weights")
    for _ in range(2):  # a crash may have it done twice
        adopt_cells(old, new)
    linked = new.run("g0-m0").checkpoints / "step-00000001" / "state.pt"
    assert linked.read_text() == "weights"
    again = Runs()
    assert run_study(spec, start("j_new"), schedule=one_by_one, execute=again) is Exit.OK
    assert again.done == ["g1-m5", "g1-m6", "g1-m7", *(f"g2-m{m}" for m in range(8))]


def test_nothing_joins_a_population_afterwards() -> None:
    with pytest.raises(SpecError, match="population"):
        extended(population(), {"search": {"samples": 9}})
