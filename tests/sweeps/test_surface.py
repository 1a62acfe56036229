from __future__ import annotations

import itertools
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from stoplab_platform.ledger import Cell, CellState
from stoplab_platform.masks import effective_ratio, with_ratio
from stoplab_sweeps.importance import importance
from stoplab_sweeps.surface import surface
from stoplab_sweeps.surface_fit import Fit, expected_improvement
from stoplab_sweeps.surface_points import Row
from stoplab_sweeps.surface_rows import surface_of
from support_studies import sweep

NOISE, RATIO = "positions.noise_std", "masking_ratio"
RATIOS = (0.5, 0.6, 0.7, 0.8)
NOISES = (0.0, 0.1, 0.2, 0.3, 0.4)


def height(noise: float, ratio: float) -> float:
    """Best noise 0.2 at ratio 0.5, rising to 0.32 at ratio 0.8."""
    return 0.6 + 0.1 * ratio - 0.8 * (noise - (0.2 + 0.4 * (ratio - 0.5))) ** 2


def measured(
    values: Any = height, *, seeds: int = 2, error: float = 0.0005, hours: Any = lambda n, r: 1.0
) -> list[Row]:
    draws = np.random.default_rng(0)
    return [
        Row(n, r, s, values(n, r) + error * draws.standard_normal(), hours(n, r))
        for n, r in itertools.product(NOISES, RATIOS)
        for s in range(seeds)
    ]


def found(rows: list[Row], **of: Any) -> dict[str, Any]:
    told = surface(rows, metric="val/knn_top1", **of)
    return json.loads(json.dumps(told, allow_nan=False))


class TestShape:
    def test_it_recovers_a_known_surface(self) -> None:
        told = found(measured())
        noises, ratios = told["axes"]["noise_std"], told["axes"]["ratio"]
        truth = np.array([[height(n, r) for n in noises] for r in ratios])
        assert np.abs(np.array(told["mean"]) - truth).max() < 0.003
        assert np.array(told["mean"]).shape == (len(ratios), len(noises))

    def test_its_ridge_is_the_best_noise_at_each_ratio(self) -> None:
        for one in found(measured())["ridge"]:
            best = 0.2 + 0.4 * (one["ratio"] - 0.5)
            assert one["noise_std"] == pytest.approx(best, abs=0.03)

    def test_less_can_be_better(self) -> None:
        rows = measured(lambda n, r: 1 - height(n, r))
        for one in found(rows, mode="min")["ridge"]:
            assert one["noise_std"] == pytest.approx(0.2 + 0.4 * (one["ratio"] - 0.5), abs=0.03)

    def test_it_is_surest_where_it_was_measured(self) -> None:
        inputs = np.array([[0.0, 0.5], [0.4, 0.5], [0.0, 0.8], [0.4, 0.8]])
        fit = Fit.of(inputs, np.array([0.5, 0.6, 0.55, 0.7]), np.full(4, 1e-6))
        assert fit.at(inputs)[1].max() < 0.002
        assert fit.at(np.array([[0.2, 0.65]]))[1][0] > 5 * fit.at(inputs)[1].max()

    def test_more_seeds_make_it_surer(self) -> None:
        few, many = (found(measured(seeds=n, error=0.02)) for n in (2, 8))
        assert np.mean(many["std"]) < 0.8 * np.mean(few["std"])

    def test_points_have_intervals_when_they_were_repeated(self) -> None:
        (first, *_), (lonely, *_) = (found(measured(seeds=n))["points"] for n in (3, 1))
        assert first["n"] == 3
        assert first["ci95"][0] < first["mean"] < first["ci95"][1]
        assert lonely["ci95"] is None

    @pytest.mark.parametrize("number", [4, 9])
    def test_few_points_without_replicates_give_a_sober_surface(self, number: int) -> None:
        places = list(itertools.product(np.linspace(0, 0.4, 3), (0.5, 0.65, 0.8)))[:number]
        draws = np.random.default_rng(1)
        rows = [Row(n, r, 0, 0.6 + 0.01 * draws.standard_normal()) for n, r in places]
        told = found(rows)
        assert np.array(told["mean"]).min() > 0.55
        assert np.array(told["mean"]).max() < 0.65
        assert told["next_points"]

    def test_one_axis_gives_a_curve(self) -> None:
        rows = [row for row in measured() if row.ratio == 0.5]
        told = found(rows)
        assert told["axes"]["ratio"] == [0.5]
        assert len(told["mean"]) == 1
        assert told["ridge"][0]["noise_std"] == pytest.approx(0.2, abs=0.03)
        ratios = found([row for row in measured() if row.noise_std == 0.2])
        assert (ratios["axes"]["noise_std"], ratios["ridge"]) == ([0.2], [])
        assert ratios["delta"] is None

    def test_too_few_points_are_said_to_be_too_few(self) -> None:
        for rows in ([], measured()[:1], [Row(0.1, 0.5, seed, 0.5) for seed in range(9)]):
            told = found(rows)
            assert "are needed" in told["reason"]
            assert told["mean"] is None


class TestDelta:
    def test_a_constant_gain_is_found_and_beyond_doubt(self) -> None:
        told = found(measured(lambda n, r: 0.5 + 0.3 * r + (0.05 if n > 0 else 0.0)))
        mean = np.array(told["delta"]["mean"])
        noises = np.array(told["axes"]["noise_std"])
        assert np.abs(mean[:, noises >= 0.1] - 0.05).max() < 0.01
        assert np.abs(mean[:, 0]).max() < 1e-4
        sure = np.array(told["beyond_doubt"])
        assert sure[:, noises >= 0.1].all()
        assert not sure[:, 0].any()

    def test_no_gain_is_nowhere_beyond_doubt(self) -> None:
        told = found(measured(lambda n, r: 0.5 + 0.3 * r, error=0.01, seeds=3))
        assert np.mean(told["beyond_doubt"]) < 0.05

    def test_single_runs_leave_nothing_beyond_doubt(self) -> None:
        told = found(measured(lambda n, r: 0.5 + 0.3 * r, error=0.01, seeds=1))
        assert told["delta"] is not None
        assert told["beyond_doubt"] is None
        assert "replicates" in told["beyond_doubt_reason"]

    def test_no_gain_seldom_has_a_place_beyond_doubt(self) -> None:
        """Each place errs alone in 2.5 % of surfaces, some place of a surface more often."""
        draws, wrong = np.random.default_rng(7), []
        for _ in range(60):
            rows = [
                Row(n, r, s, 0.5 + 0.3 * r + 0.01 * draws.standard_normal())
                for n, r, s in itertools.product(NOISES, (0.5, 0.65, 0.8), range(3))
            ]
            wrong.append(np.array(found(rows)["beyond_doubt"]))
        assert np.mean(wrong) < 0.03
        assert np.mean([one.any() for one in wrong]) < 0.2

    def test_many_noise_scales_do_not_share_one_lucky_baseline(self) -> None:
        """All differences at a ratio lean on the same runs without noise."""
        draws, wrong = np.random.default_rng(0), []
        for _ in range(40):
            rows = [
                Row(n, r, s, 0.6 + 0.01 * draws.standard_normal())
                for n, r, s in itertools.product(np.linspace(0, 0.8, 9), (0.6, 0.7, 0.8), range(5))
            ]
            wrong.append(np.mean(found(rows)["beyond_doubt"]))
        assert np.mean(wrong) < 0.03

    def test_runs_that_differ_by_the_same_amount_are_no_proof(self) -> None:
        rows = [
            Row(n, r, s, float(n > 0) + s)
            for n, r, s in itertools.product((0.0, 0.2, 0.4), (0.6, 0.7), range(3))
        ]
        told = found(rows)
        assert told["beyond_doubt"] is None
        assert "seed to seed" in told["beyond_doubt_reason"]

    def test_a_loss_is_no_improvement(self) -> None:
        told = found(measured(lambda n, r: 0.5 - n))
        assert not np.any(told["beyond_doubt"])
        assert np.any(found(measured(lambda n, r: 0.5 - n), mode="min")["beyond_doubt"])

    def test_pairing_takes_the_seeds_out(self) -> None:
        draws = np.random.default_rng(0)
        luck = draws.normal(0, 0.05, size=3)
        rows = [
            Row(row.noise_std, row.ratio, row.seed, row.value + luck[row.seed])
            for row in measured(seeds=3)
        ]
        told = found(rows)
        assert np.mean(told["delta"]["std"]) < 0.2 * np.mean(told["std"])

    def test_it_needs_the_deterministic_arm(self) -> None:
        told = found([row for row in measured() if row.noise_std > 0])
        assert told["delta"] is None
        assert told["beyond_doubt"] is None
        assert told["mean"] is not None


class TestNext:
    def test_the_next_points_lie_at_the_summit(self) -> None:
        told = found([row for row in measured() if row.noise_std in (0.0, 0.1, 0.4)])
        best = told["next_points"][0]
        assert best["noise_std"] == pytest.approx(0.3, abs=0.1)
        assert best["ratio"] > 0.65
        rates = [one["ei_per_hour"] for one in told["next_points"]]
        assert rates == sorted(rates, reverse=True)
        assert best["gpu_hours"] is None, "no GPU was used"

    def test_a_dearer_region_is_worth_less(self) -> None:
        def flat(n: float, r: float) -> float:
            return 0.5 + 0.001 * n

        rows = measured(flat, hours=lambda n, r: 10.0 if r > 0.65 else 1.0)
        first = found(rows, hours_unit="GPU-hours")["next_points"][0]
        assert first["ratio"] < 0.65
        assert first["gpu_hours"] == pytest.approx(1.0, rel=0.5)
        assert first["ei_per_gpu_hour"] == first["ei_per_hour"]

    def test_expected_improvement_by_hand(self) -> None:
        gains = expected_improvement(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 0.0)
        assert gains == pytest.approx([1.0, 0.3989423], abs=1e-6)


class TestImportance:
    def test_the_axis_that_decides_has_the_share(self) -> None:
        points = [({"a": a, "b": b}, a + 0.01 * b) for a in (0, 1, 2) for b in (0, 1, 2)]
        shares = importance(points)
        assert shares is not None
        assert shares["a"] > 0.9
        assert sum(shares.values()) == pytest.approx(1.0, abs=1e-3)

    def test_words_and_lists_are_values_too(self) -> None:
        points = [
            ({"kind": kind, "scale": scale}, float(kind == "x"))
            for kind in ("x", "y") for scale in ([0.1, 0.2], [0.2, 0.3], None)
        ]  # fmt: skip
        shares = importance(points)
        assert shares is not None
        assert shares["kind"] > 0.9

    def test_too_little_to_say(self) -> None:
        assert importance([]) is None
        assert importance([({"a": a}, float(a)) for a in range(9)]) is None
        assert importance([({"a": a, "b": -a}, 0.5) for a in range(9)]) is None


class TestOfASweep:
    def cell(self, noise: float, ratio: float, seed: int, **more: Any) -> Cell:
        began = datetime(2026, 1, 1, tzinfo=UTC)
        point = more.pop("point", {NOISE: noise, RATIO: ratio, **more.pop("beside", {})})
        fields = {
            "id": f"{noise}-{ratio}-{seed}-{more}", "index": 0, "point": point, "seed": seed,
            "state": CellState.SUCCEEDED, "metrics": {"val/knn_top1": height(noise, ratio)},
            "started_at": began, "finished_at": began + timedelta(hours=9), "ran_s": 7200,
            **more,
        }  # fmt: skip
        return Cell.model_validate(fields)

    def test_ratios_are_the_effective_ones_and_deterministic_is_noise_0(self) -> None:
        spec = sweep()
        cells = [self.cell(n, r, s) for n in (0.0, 0.1, 0.3) for r in (0.6, 0.7) for s in (0, 1)]
        told = surface_of(spec, cells)
        run = spec.base
        really = {effective_ratio(with_ratio(run.masking, run.grid, r), run.grid)
                  for r in (0.6, 0.7)}  # fmt: skip
        assert {p["ratio"] for p in told["points"]} == {round(r, 6) for r in really}
        assert told["hours_unit"] == "CPU-hours"
        assert told["next_points"][0]["hours"] == pytest.approx(2.0)
        assert told["delta"] is not None
        assert set(told["importance"]) == {NOISE, RATIO}

    def test_pruned_and_failed_runs_are_left_out(self) -> None:
        cells = [self.cell(n, 0.6, 0) for n in (0.0, 0.1, 0.3)]
        cells.append(self.cell(0.2, 0.6, 0, state=CellState.FAILED))
        told = surface_of(sweep(), cells)
        assert len(told["points"]) == 3
        assert told["left_out"] == 1

    def test_other_axes_are_held_at_their_best(self) -> None:
        cells = [
            self.cell(n, 0.6, 0, beside={"optim.lr": lr},
                      metrics={"val/knn_top1": height(n, 0.6) - 100 * lr})
            for n in (0.0, 0.1, 0.3) for lr in (1e-3, 2e-3)
        ]  # fmt: skip
        told = surface_of(sweep(), cells)
        assert told["slice"] == {"optim.lr": 1e-3}
        assert len(told["points"]) == 3
        assert told["left_out"] == 3

    def test_another_covariance_is_another_setting(self) -> None:
        cells = [
            self.cell(n, 0.6, 0, beside={"positions.covariance": kind},
                      metrics={"val/knn_top1": height(n, 0.6) - (kind == "identity")})
            for n in (0.0, 0.1, 0.3) for kind in ("identity", "learned")
        ]  # fmt: skip
        told = surface_of(sweep(), cells)
        assert told["slice"] == {"positions.covariance": "learned"}
        assert min(point["mean"] for point in told["points"]) > 0
        assert told["left_out"] == 3

    def test_the_count_of_blocks_is_another_setting_where_the_ratio_is_an_axis(self) -> None:
        cells = [
            self.cell(n, 0.6, 0, beside={"masking.target.count": count})
            for n in (0.0, 0.1, 0.3) for count in (2, 3)
        ]  # fmt: skip
        told = surface_of(sweep(), cells)
        assert set(told["slice"]) == {"masking.target.count"}
        assert told["left_out"] == 3

    def test_whole_positions_are_split_into_scale_and_the_rest(self) -> None:
        still = {"kind": "deterministic"}
        drawn = [{"kind": "stochastic", "noise_std": n} for n in (0.1, 0.3)]
        cells = [
            self.cell(0.1, 0.6, 0, point={"positions": positions, RATIO: 0.6})
            for positions in (still, *drawn)
        ]
        told = surface_of(sweep(), cells)
        assert [point["noise_std"] for point in told["points"]] == [0.0, 0.1, 0.3]
        assert told["slice"] == {}
        assert told["baseline"] == "ijepa"

    def test_a_place_that_ran_twice_counts_once(self) -> None:
        cells = [self.cell(n, 0.6, 0) for n in (0.0, 0.1, 0.3)]
        twice = self.cell(0.0, 0.6, 0, point={"positions.kind": "deterministic", RATIO: 0.6})
        told = surface_of(sweep(), [*cells, twice])
        assert told["left_out"] == 1

    def test_noise_0_of_the_official_code_is_named(self) -> None:
        spec = sweep(base={"positions.parametrization": "official"})
        told = surface_of(spec, [self.cell(n, 0.6, 0) for n in (0.0, 0.1, 0.3)])
        assert told["baseline"] == "stop_sigma0"
