"""What the verdict promises, over 20,000 simulated comparisons each."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from statsmodels.stats.power import TTestPower

from stoplab_platform.specs.comparison import Spending
from stoplab_sweeps.compare import compare
from stoplab_sweeps.paired import t_interval, verdict
from stoplab_sweeps.sequential import look_at

pytestmark = pytest.mark.slow

COMPARISONS = 20_000
Floats = NDArray[np.float64]


def arms(blocks: int, d_z: float, seed: int) -> tuple[Floats, Floats]:
    """Accuracies [comparison, block] of two arms: what a block shares, and noise of each run."""
    generator = np.random.default_rng(seed)
    shared = generator.normal(0.7, 0.05, (COMPARISONS, blocks))
    noise = generator.normal(0, 0.01, (2, COMPARISONS, blocks))
    return shared + noise[0], shared + noise[1] + d_z * 0.01 * np.sqrt(2)


def deltas(blocks: int, d_z: float = 0.0, *, seed: int) -> Floats:
    reference, other = arms(blocks, d_z, seed)
    return other - reference


@pytest.mark.parametrize("blocks", [3, 5, 12])
def test_without_an_effect_the_interval_covers_zero_in_95_percent(blocks: int) -> None:
    found = [t_interval(row, 0.05) for row in deltas(blocks, seed=blocks)]
    covered = np.mean([low <= 0 <= high for low, high in filter(None, found)])
    assert len(found) == COMPARISONS
    assert covered == pytest.approx(0.95, abs=0.005)


@pytest.mark.parametrize("looks", [(5, 8, 12), (3, 5, 8, 12)])
@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock"])
def test_all_looks_together_err_in_alpha(looks: tuple[int, ...], spending: Spending) -> None:
    """Whoever stops at the first look with a verdict is wrong as often as one look would be."""
    planned = [(n, look_at(n, looks, spending, alpha=0.05).alpha_here) for n in looks]
    wrong = 0
    for row in deltas(looks[-1], seed=100):
        for n, level in planned:
            assert level is not None
            if verdict(t_interval(row[:n], level), 0) in ("better", "worse"):
                wrong += 1
                break
    assert wrong / COMPARISONS <= 0.055
    assert wrong / COMPARISONS == pytest.approx(0.05, abs=0.005)


def test_looks_without_spending_would_err_more() -> None:
    """The same looks at 0.05 each: what the plan is there for."""
    rows = deltas(12, seed=100)
    wrong = [
        any(verdict(t_interval(row[:n], 0.05), 0) != "inconclusive" for n in (5, 8, 12))
        for row in rows
    ]
    assert np.mean(wrong) > 0.08


def test_a_true_effect_is_found_as_often_as_power_says() -> None:
    found = [verdict(t_interval(row, 0.05), 0) for row in deltas(12, 1.0, seed=7)]
    promised = TTestPower().power(1.0, 12, 0.05)
    assert found.count("better") / COMPARISONS == pytest.approx(promised, abs=0.015)


def test_a_whole_comparison_says_what_these_pieces_say() -> None:
    looks = (5, 8, 12)
    reference, other = arms(12, 0.5, seed=9)
    for a, b in zip(reference[:10], other[:10], strict=True):
        for n in looks:
            table = {i: {"a": a[i], "b": b[i]} for i in range(n)}
            judged = compare(table, ("a", "b"), metric="m", min_effect=0.0, looks=looks)
            level = look_at(n, looks, "obrien_fleming").alpha_here
            assert level is not None
            interval = t_interval(b[:n] - a[:n], level)
            assert judged["ci_alpha"] == pytest.approx(interval)
            assert judged["verdict"] == verdict(interval, 0)
