from __future__ import annotations

from typing import Any

import pytest

from stoplab_platform.errors import SpecError
from stoplab_platform.ledger import CellState
from stoplab_platform.masks import effective_ratio
from stoplab_sweeps.cells import name_of, plan
from stoplab_sweeps.space import Infeasible, label, points, run_at
from support_studies import comparison, sweep

NOISE, RATIO = "positions.noise_std", "masking_ratio"


def random_sweep(samples: int, **space: dict[str, Any]) -> list[dict[str, Any]]:
    axes = {path.replace("__", "."): axis for path, axis in space.items()}
    return points(sweep(space=axes, search={"kind": "random", "samples": samples}))


def test_a_grid_is_the_product_in_order() -> None:
    assert points(sweep()) == [
        {NOISE: 0.1, RATIO: 0.3},
        {NOISE: 0.1, RATIO: 0.6},
        {NOISE: 0.25, RATIO: 0.3},
        {NOISE: 0.25, RATIO: 0.6},
    ]


def test_draws_keep_to_their_axes() -> None:
    drawn = random_sweep(
        200,
        positions__noise_std={"uniform": [0.1, 0.3]},
        optim__lr={"loguniform": [1e-4, 1e-2]},
        optim__epochs={"int": [2, 4]},
        data__hflip={"choice": [True, False]},
    )
    assert len(drawn) == 200
    assert all(0.1 <= point[NOISE] <= 0.3 for point in drawn)
    rates = [point["optim.lr"] for point in drawn]
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert 60 < sum(rate < 1e-3 for rate in rates) < 140  # even in the logarithm
    assert {point["optim.epochs"] for point in drawn} == {2, 3, 4}
    assert {point["data.hflip"] for point in drawn} == {True, False}


def test_more_samples_and_more_axes_move_no_earlier_draw() -> None:
    noise = {"uniform": [0.1, 0.3]}
    few, many = (
        random_sweep(3, positions__noise_std=noise),
        random_sweep(9, positions__noise_std=noise),
    )
    wide = random_sweep(3, positions__noise_std=noise, optim__lr={"loguniform": [1e-4, 1e-2]})
    assert many[:3] == few
    assert [point[NOISE] for point in wide] == [point[NOISE] for point in few]


def test_the_search_seed_decides_the_draws() -> None:
    space = {NOISE: {"uniform": [0.1, 0.3]}}
    one, same, other = (
        points(sweep(space=space, search={"kind": "random", "samples": 4, "seed": seed}))
        for seed in (0, 0, 1)
    )
    assert one == same != other


def test_a_small_space_has_no_point_twice() -> None:
    drawn = random_sweep(10, data__hflip={"choice": [True, False]})
    assert sorted(point["data.hflip"] for point in drawn) == [False, True]


def test_a_ratio_is_reached_by_the_sampler() -> None:
    run = run_at(sweep(), {NOISE: 0.1, RATIO: 0.6}, seed=3, name="x")
    assert effective_ratio(run.masking, run.grid) == pytest.approx(0.6, abs=0.02)
    assert run.positions.kind == "stochastic"
    assert (run.positions.noise_std, run.seed, run.name) == (0.1, 3, "x")


def test_masks_that_cannot_be_drawn_are_infeasible() -> None:
    with pytest.raises(Infeasible, match="out of reach"):
        run_at(sweep(), {RATIO: 0.3}, seed=0, name="x")
    spec = sweep(space={"masking.min_keep": {"grid": [4, 12]}})
    with pytest.raises(Infeasible, match="min_keep"):
        run_at(spec, {"masking.min_keep": 12}, seed=0, name="x")


def test_any_other_problem_names_the_point() -> None:
    spec = sweep(space={"optim.epochs": {"int": [1, 3]}}, search={"kind": "random", "samples": 2})
    with pytest.raises(SpecError, match="epochs=1 warmup_epochs=5") as caught:
        run_at(spec, {"optim.epochs": 1, "optim.warmup_epochs": 5.0}, seed=0, name="x")
    assert caught.value.problems[0].path == ("space",)


@pytest.mark.parametrize(
    ("point", "text"),
    [
        ({NOISE: 0.25, RATIO: 0.6}, "noise_std=0.25 ratio=0.6"),
        ({NOISE: 0.123456}, "noise_std=0.1235"),
        ({"model.width": 8, "model.predictor.width": 16}, "model.width=8 model.predictor.width=16"),
        ({"data.hflip": True}, "hflip=True"),
    ],
)
def test_points_have_short_names(point: dict[str, Any], text: str) -> None:
    assert label(point) == text


def test_a_sweep_is_planned_seed_by_seed_with_stable_numbers() -> None:
    planned = plan(sweep({"seed": 7}, replicates=2))
    assert [cell.id for cell, _ in planned] == [
        "p000-s7", "p001-s7", "p002-s7", "p003-s7",
        "p000-s8", "p001-s8", "p002-s8", "p003-s8",
    ]  # fmt: skip
    assert [cell.index for cell, _ in planned] == list(range(8))
    assert [run.seed for _, run in planned if run] == [7, 7, 8, 8]
    assert name_of(planned[5].cell) == "noise_std=0.1 ratio=0.6 s8"


def test_infeasible_cells_are_found_before_anything_runs() -> None:
    states = [(cell.state, run is None) for cell, run in plan(sweep())]
    assert states == [
        (CellState.INFEASIBLE, True),
        (CellState.PENDING, False),
        (CellState.INFEASIBLE, True),
        (CellState.PENDING, False),
    ]


def test_a_comparison_is_planned_block_by_block() -> None:
    planned = plan(comparison())
    assert [cell.id for cell, _ in planned] == [
        f"{arm}-s{seed}" for seed in (0, 1, 2) for arm in ("deterministic", "stochastic")
    ]
    run = planned[2].run
    assert run is not None
    assert (run.positions.kind, run.seed) == ("deterministic", 1)
    assert name_of(planned[2].cell) == "deterministic s1"


def test_studies_that_cannot_be_are_refused() -> None:
    with pytest.raises(SpecError, match="the study has 6 runs"):
        plan(comparison(limits={"trials": 5}))
    with pytest.raises(SpecError, match="no point can run"):
        plan(sweep(space={RATIO: {"grid": [0.1, 0.99]}}))
