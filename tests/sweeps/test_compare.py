from __future__ import annotations

import json
import math
from typing import Any

import pytest

from stoplab_platform.ledger import CellState
from stoplab_sweeps.compare import compare, result
from stoplab_sweeps.paired import difference, holm
from stoplab_sweeps.wording import sentence, warnings
from support_comparison import KEYS
from support_studies import certificate, comparison, finished

VALUES = {0: (0.50, 0.54), 1: (0.52, 0.57), 2: (0.48, 0.53)}


def cells(values: dict[int, tuple[float, float]] | None = None) -> list[Any]:
    return [
        finished(arm, seed, value)
        for seed, pair in (values or VALUES).items()
        for arm, value in zip(("deterministic", "stochastic"), pair, strict=True)
    ]


def judge(table: dict[int, dict[str, float | None]], *arms: str) -> dict[str, Any]:
    return compare(table, arms, metric="m", min_effect=0.005)


def test_the_schema_is_whole_and_json() -> None:
    judged = result(comparison(), cells())
    assert set(judged) >= KEYS
    json.dumps(judged, allow_nan=False)
    assert (judged["metric"], judged["reference"], judged["other"]) == (
        "test/knn_top1", "deterministic", "stochastic",
    )  # fmt: skip
    assert judged["arms"]["deterministic"] == {
        "mean": pytest.approx(0.5), "std": pytest.approx(0.02), "n": 3,
    }  # fmt: skip
    assert (judged["verdict"], judged["n_blocks"], judged["complete"]) == ("better", 3, True)
    assert judged["baseline"] == "ijepa"
    assert judged["context"]["pixels/knn_top1"]["mean"] == pytest.approx(0.9)


def test_blocks_hold_values_differences_and_runs() -> None:
    block = result(comparison(), cells())["blocks"][1]
    assert block == {
        "seed": 1,
        "values": {"deterministic": 0.52, "stochastic": 0.57},
        "delta": pytest.approx(0.05),
        "deltas": {"stochastic": pytest.approx(0.05)},
        "run_ids": {"deterministic": "run-deterministic-1", "stochastic": "run-stochastic-1"},
    }


def test_the_difference_is_other_minus_reference() -> None:
    swapped = comparison(
        arms={"stochastic": {}, "deterministic": {"positions.kind": "deterministic"}}
    )
    judged = result(swapped, cells())
    assert judged["delta"] == pytest.approx(-0.14 / 3)
    assert judged["verdict"] == "worse"
    assert judged["baseline"] is None


def test_half_blocks_are_shown_and_left_out() -> None:
    half = cells()[:-1]
    judged = result(comparison(), half)
    assert judged["n_blocks"] == 2
    assert not judged["complete"]
    assert judged["blocks"][2]["values"] == {"deterministic": 0.48, "stochastic": None}
    assert judged["blocks"][2]["delta"] is None
    assert judged["blocks"][2]["run_ids"]["stochastic"] is None
    assert judged["arms"]["deterministic"]["mean"] == pytest.approx(0.51)
    means = judged["arms"]["stochastic"]["mean"] - judged["arms"]["deterministic"]["mean"]
    assert judged["delta"] == pytest.approx(means)


def test_a_failed_run_is_a_missing_value() -> None:
    failed = [*cells()[:-1], cells()[-1].model_copy(update={"state": CellState.FAILED})]
    assert result(comparison(), failed)["n_blocks"] == 2


def test_a_run_without_the_metric_is_not_complete() -> None:
    blank = [*cells()[:-1], cells()[-1].model_copy(update={"metrics": {}})]
    judged = result(comparison(), blank)
    assert (judged["n_blocks"], judged["complete"]) == (2, False)


def test_nan_is_missing() -> None:
    judged = judge({0: {"a": 0.1, "b": math.nan}, 1: {"a": 0.1, "b": 0.2}, 2: {"b": 0.3}}, "a", "b")
    assert judged["n_blocks"] == 1
    assert judged["verdict"] == "inconclusive"
    json.dumps(judged, allow_nan=False)


def test_no_block_at_all() -> None:
    judged = result(comparison(), [])
    assert (judged["n_blocks"], judged["delta"], judged["verdict"]) == (0, None, "inconclusive")
    assert judged["arms"]["deterministic"] == {"mean": None, "std": None, "n": 0}
    assert "two or more are needed" in judged["sentence"]
    json.dumps(judged, allow_nan=False)


def test_several_arms_are_each_held_against_the_reference() -> None:
    table: dict[int, dict[str, float | None]] = {
        0: {"a": 0.50, "b": 0.54, "c": 0.51},
        1: {"a": 0.52, "b": 0.57, "c": 0.51},
        2: {"a": 0.48, "b": 0.53, "c": None},
        3: {"a": 0.49, "b": 0.52, "c": 0.50},
    }
    judged = judge(table, "a", "b", "c")
    assert list(judged["comparisons"]) == ["b", "c"]
    assert judged["delta"] == judged["comparisons"]["b"]["delta"]
    one = difference([0.50, 0.52, 0.49], [0.51, 0.51, 0.50], min_effect=0.005)
    assert judged["comparisons"]["c"]["n_blocks"] == 3
    assert judged["comparisons"]["c"]["p_t"] == one.p_t
    adjusted = holm([judged["comparisons"][arm]["p_t"] for arm in "bc"])
    assert [judged["comparisons"][arm]["p_holm"] for arm in "bc"] == adjusted
    assert judged["blocks"][2]["deltas"] == {"b": pytest.approx(0.05), "c": None}
    assert judged["arms"]["a"]["n"] == 4


def test_a_broken_pairing_refuses_the_verdict() -> None:
    broken = cells()
    broken[3] = broken[3].model_copy(update={"certificate": certificate("another seed")})
    judged = result(comparison(), broken)
    assert judged["verdict"] == "refused"
    assert judged["comparisons"]["stochastic"]["verdict"] == "refused"
    assert not judged["certificate"]["passed"]
    assert judged["sentence"].startswith("no verdict, the pairing is broken: seed 1")


@pytest.mark.parametrize(
    ("gaps", "words"),
    [
        ((0.04, 0.05, 0.045), "b is better than a: m +0.0450, 95 % interval"),
        ((-0.04, -0.05, -0.045), "b is worse than a"),
        ((0.001, -0.001, 0.0), "b and a are equivalent within 0.005"),
        ((0.04, -0.05, 0.01), "inconclusive: m +0.0000"),
    ],
)
def test_the_sentence_says_the_verdict(gaps: tuple[float, ...], words: str) -> None:
    judged = judge({i: {"a": 0.5, "b": 0.5 + gap} for i, gap in enumerate(gaps)}, "a", "b")
    text = sentence(judged)
    assert text.startswith(words)
    if judged["verdict"] == "inconclusive":
        more = judged["more_seeds_for_80_power"]
        assert text.endswith(f"about {more} more seeds for 80 % power")


def test_other_metrics_are_told_and_adjusted_with_the_primary() -> None:
    def more(cell: Any) -> dict[str, float]:
        lift = 0.03 if cell.arm == "stochastic" else 0.0
        low = {"test/low_shot_top1": 0.3} if cell.arm == "stochastic" else {}
        probe = {"test/linear_top1": 0.6 + cell.seed / 100 * (1 + lift) + lift}
        return {**cell.metrics, **probe, **low, "val/knn_top1": 0.1, "train/loss": 1.0}

    full = [cell.model_copy(update={"metrics": more(cell)}) for cell in cells()]
    judged = result(comparison(), full)
    (row,) = judged["secondary"]
    assert (row["metric"], row["arm"], row["n_blocks"]) == ("test/linear_top1", "stochastic", 3)
    assert row["delta"] == pytest.approx(0.03 + 0.01 * 0.03)
    a = [0.6, 0.61, 0.62]
    own = difference(a, [x + 0.03 + (x - 0.6) * 0.03 for x in a], min_effect=0)
    assert row["p_t"] == pytest.approx(own.p_t, abs=1e-6)
    assert row["ci95"] == pytest.approx(own.ci95)
    assert row["d_z"] == pytest.approx(own.d_z)
    family = holm([judged["p_t"], row["p_t"]])
    assert [judged["p_holm"], row["p_holm"]] == family
    assert judged["comparisons"]["stochastic"]["p_holm"] == family[0]
    assert result(comparison(), cells())["secondary"] == []


def test_what_a_design_cannot_show_is_said() -> None:
    five = {s: (0.5 + s / 100, 0.54 + s / 99) for s in range(5)}
    judged = result(comparison(seeds=list(five)), cells(five))
    (few,) = judged["warnings"]
    assert "5 blocks cannot get a sign-flip p below 0.0625" in few
    assert "6 blocks can" in few
    assert judged["p_sign_flip"] == 0.0625
    six = {s: (0.5 + s / 100, 0.54 + s / 99) for s in range(6)}
    assert result(comparison(seeds=list(six)), cells(six))["warnings"] == []


def test_half_blocks_unlike_draws_and_baselines_are_warned_of() -> None:
    half = result(comparison(), cells()[:-1])["warnings"]
    assert half[1] == "half blocks are shown and left out: 2 (no stochastic)"
    arms = {"some": {}, "more": {"masking.target.count": 4}}
    other = [
        finished(arm, s, v, certificate={**certificate(s), "masks": arm})
        for s in range(6) for arm, v in (("some", 0.5), ("more", s / 9))
    ]  # fmt: skip
    told = result(comparison(arms=arms, seeds=list(range(6))), other, notes=["and more"])[
        "warnings"
    ]
    assert "the arms change their masks on purpose" in told[0]
    assert told[1:] == ["the reference some is none of the named baselines", "and more"]
    gone = result(comparison(seeds=[0, 1, 2, 3, 4]), cells())["warnings"]
    assert gone[-1] == "blocks without any result: 3, 4"
    off = {"off": {"positions": {"kind": "deterministic", "parametrization": "official"}}, "on": {}}
    runs = [finished(arm, s, 0.5 + s / 100) for s in range(6) for arm in off]
    assert "not I-JEPA" in result(comparison(arms=off, seeds=list(range(6))), runs)["warnings"][-1]


def test_differences_without_spread_are_not_to_be_trusted() -> None:
    table = {seed: {"a": 0.5, "b": 0.6, "c": 0.6 + seed / 9} for seed in range(6)}
    judged = compare(table, ("a", "b", "c"), metric="m", min_effect=0.005)
    told, several = warnings({**judged, "certificate": None})
    assert "2 arms are held against a" in several
    assert told.startswith("b has the same difference in all 6 blocks")
