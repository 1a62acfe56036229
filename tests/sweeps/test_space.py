from __future__ import annotations

from typing import Any

import pytest

from stoplab_platform.errors import SpecError
from stoplab_platform.ledger import CellState
from stoplab_platform.masks import effective_ratio
from stoplab_sweeps.cells import name_of, plan, run_of
from stoplab_sweeps.space import Infeasible, label, point_id, points, run_at
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


def test_fields_that_do_not_fit_together_are_infeasible() -> None:
    spec = sweep(space={"optim.epochs": {"int": [1, 3]}}, search={"kind": "random", "samples": 2})
    with pytest.raises(Infeasible, match=r"optim.warmup_epochs: 5"):
        run_at(spec, {"optim.epochs": 1, "optim.warmup_epochs": 5.0}, seed=0, name="x")
    patches = sweep(space={"model.patch_size": {"grid": [4, 16]}})
    states = {cell.point["model.patch_size"]: cell.state for cell in plan(patches)}
    assert states == {4: CellState.PENDING, 16: CellState.INFEASIBLE}


def test_a_ratio_replaces_a_scale_that_does_not_fit() -> None:
    target = {"count": 2, "scale": [0.15, 0.2]}
    spec = sweep(space={"masking.target": {"grid": [target]}, RATIO: {"grid": [0.6]}})
    with pytest.raises(Infeasible):
        run_at(spec, {"masking.target": target}, seed=0, name="x")
    run = run_at(spec, {"masking.target": target, RATIO: 0.6}, seed=0, name="x")
    assert effective_ratio(run.masking, run.grid) == pytest.approx(0.6, abs=0.02)


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


def test_a_sweep_is_planned_seed_by_seed() -> None:
    planned = plan(sweep({"seed": 7}, replicates=2))
    ids = [point_id(point) for point in points(sweep())]
    assert [cell.id for cell in planned] == [f"p-{i}-s{seed}" for seed in (7, 8) for i in ids]
    assert [cell.index for cell in planned] == list(range(8))
    assert name_of(planned[5]) == "noise_std=0.1 ratio=0.6 s8"


def test_a_cell_is_known_by_its_points_content() -> None:
    few = plan(sweep(space={NOISE: {"grid": [0.1, 1]}}))
    many = plan(sweep(space={NOISE: {"grid": [0.0, 0.1, 0.5, 1.0]}}, replicates=2))
    assert {cell.id for cell in few} < {cell.id for cell in many}
    again = plan(sweep(space={NOISE: {"grid": [0.1, 0.1]}}))
    assert [cell.id for cell in again] == [few[0].id]


def test_infeasible_cells_are_found_before_anything_runs() -> None:
    assert [cell.state for cell in plan(sweep())] == [
        CellState.INFEASIBLE, CellState.PENDING, CellState.INFEASIBLE, CellState.PENDING,
    ]  # fmt: skip


def test_a_comparison_is_planned_block_by_block() -> None:
    spec = comparison()
    planned = plan(spec)
    assert [cell.id for cell in planned] == [
        f"{arm}-s{seed}" for seed in (0, 1, 2) for arm in ("deterministic", "stochastic")
    ]
    run = run_of(spec, planned[2])
    assert (run.positions.kind, run.seed) == ("deterministic", 1)
    assert name_of(planned[2]) == "deterministic s1"


class TestSobol:
    space = {NOISE: {"uniform": [0.0, 1.0]}, "optim.lr": {"loguniform": [1e-4, 1e-2]}}

    def drawn(self, samples: int, seed: int = 0) -> list[dict[str, Any]]:
        search = {"kind": "sobol", "samples": samples, "seed": seed}
        return points(sweep(space=self.space, search=search))

    def test_more_samples_move_no_earlier_point(self) -> None:
        assert self.drawn(16)[:5] == self.drawn(5)

    def test_its_points_are_spread_evenly(self) -> None:
        found = self.drawn(16)
        for low in range(4):  # a (0, 4, 2)-net: four points in every quarter of each axis
            quarter = [p for p in found if low / 4 <= p[NOISE] < (low + 1) / 4]
            assert len(quarter) == 4
            assert sum(point["optim.lr"] < 1e-3 for point in quarter) == 2

    def test_the_search_seed_scrambles_them(self) -> None:
        assert self.drawn(4) == self.drawn(4)
        assert self.drawn(4) != self.drawn(4, seed=1)


def test_a_sweep_of_which_nothing_can_run_is_refused() -> None:
    with pytest.raises(SpecError, match="no point can run"):
        plan(sweep(space={RATIO: {"grid": [0.1, 0.99]}}))
