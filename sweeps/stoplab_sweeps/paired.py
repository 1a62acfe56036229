"""Paired statistics: what a difference between two arms is worth, block by block.

Pure functions on numbers; larger is better, as all of stoplab's accuracies are. Where a number
is not defined (no spread, too few blocks) it is None, never NaN, so that it can stand in JSON.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from stoplab_sweeps.power import more_blocks, spread

Verdict = Literal["better", "worse", "equivalent", "inconclusive"]
Interval = tuple[float, float]
Floats = NDArray[np.float64]

LEVEL = 0.95  # of every interval that is named ci95
FEWEST_FOR_BCA = 10
RESAMPLES = 9_999  # sign flips are exact while 2^n is no more, that is to 13 blocks
NOISE = 1e-13  # of a block's values: floats that are nearer are the same number
TIE = 1e-14  # of all values' sum: sums of differences that are nearer are the same number
ROOM = 2_000_000  # numbers of resamples that are held at a time


@dataclass(frozen=True)
class Difference:
    """One arm against the reference over the blocks that hold both; delta = other - reference."""

    delta: float | None
    """Mean of the blocks' differences."""
    ci95: Interval | None
    """Paired-t interval of delta at 95 %."""
    ci_alpha: Interval | None
    """The same at 1 - alpha, or at the level of this look: the one that decides."""
    verdict: Verdict
    """Of ci_alpha and min_effect alone."""
    n_blocks: int
    """Blocks that hold both arms."""
    p_t: float | None
    """Paired t-test, two-sided."""
    p_sign_flip: float | None
    """Sign-flip permutation test of the mean, two-sided; exact to 13 blocks, sampled beyond."""
    p_wilcoxon: float | None
    """Wilcoxon's signed ranks, two-sided."""
    d_z: float | None
    """Mean over standard deviation of the differences (Cohen)."""
    prob_superior: float | None
    """Share of blocks in which the other arm is ahead, ties as halves."""
    ci95_bca: Interval | None
    """Bootstrap interval (bias-corrected, accelerated); None below 10 blocks."""
    ci95_unpaired: Interval | None
    """Welch's interval, as if the arms were no pairs: what the pairing gains."""
    tost_p: float | None
    """Two one-sided paired t-tests of |delta| < min_effect; None where min_effect is 0."""
    more_seeds_for_80_power: int | None
    """Blocks to add, see `power.more_blocks`."""


def difference(
    reference: Sequence[float],
    other: Sequence[float],
    *,
    min_effect: float,
    alpha: float = 0.05,
    level: float | None = None,
) -> Difference:
    """Compare two arms; the sequences are aligned by block and finite.

    ``level`` is the error rate of the interval that decides where it is not alpha: one of
    several planned looks.
    """
    a, b = np.asarray(reference, dtype=float), np.asarray(other, dtype=float)
    assert a.shape == b.shape == (len(reference),), "blocks are complete"
    assert np.isfinite([a, b]).all(), "missing values were left out"
    deltas = _without_noise(b - a, a, b)
    n = len(deltas)
    mean = mean_of(deltas) if n else None
    sd = spread(deltas)
    interval = t_interval(deltas, alpha if level is None else level)
    return Difference(
        delta=mean,
        ci95=t_interval(deltas, 1 - LEVEL),
        ci_alpha=interval,
        verdict=verdict(interval, min_effect),
        n_blocks=n,
        p_t=_p_t(deltas),
        p_sign_flip=_p_sign_flip(deltas, a, b),
        p_wilcoxon=_p_wilcoxon(deltas),
        d_z=mean / sd if mean is not None and sd else None,
        prob_superior=float(((deltas > 0) + (deltas == 0) / 2).mean()) if n else None,
        ci95_bca=_bca(deltas),
        ci95_unpaired=_welch(a, b),
        tost_p=_tost(deltas, min_effect),
        more_seeds_for_80_power=more_blocks(deltas, min_effect=min_effect, alpha=alpha),
    )


def verdict(interval: Interval | None, min_effect: float) -> Verdict:
    """`better` / `worse`: the interval excludes 0; `equivalent`: it lies inside +-min_effect."""
    if interval is None:
        return "inconclusive"
    low, high = interval
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    if -min_effect <= low and high <= min_effect:
        return "equivalent"
    return "inconclusive"


def t_interval(deltas: Floats, alpha: float) -> Interval | None:
    """Student's interval of the mean at 1 - alpha; equal values give a point, a single one None.

    None too where alpha is so small that the interval has no end.
    """
    sd = spread(deltas)
    if sd is None:
        return None
    n, mean = len(deltas), mean_of(deltas)
    half = _quantile(alpha, n - 1) * sd / math.sqrt(n) if sd else 0.0
    return (mean - half, mean + half) if math.isfinite(half) else None


def mean_of(values: Floats) -> float:
    """The mean; of equal values that value to the last bit, and 0 has no sign."""
    return float(values[0] if np.ptp(values) == 0 else values.mean()) + 0.0


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjustment over several comparisons; those without a p stay None."""
    known = [p for p in p_values if p is not None]
    adjusted = iter(multipletests(known, method="holm")[1] if known else [])
    return [None if p is None else float(next(adjusted)) for p in p_values]


@lru_cache(maxsize=256)
def _quantile(alpha: float, degrees: int) -> float:
    """Student's t that is passed, on either side, with chance alpha."""
    return float(stats.t.isf(alpha / 2, degrees))


def _without_noise(deltas: Floats, a: Floats, b: Floats) -> Floats:
    """Differences whose sizes differ by the values' rounding alone are made equal, or 0.

    Each is made equal to one that is known at least as well: a block of large values, whose
    rounding is large, changes no other.
    """
    noise = NOISE * np.maximum(np.abs(a), np.abs(b))
    sizes = np.abs(deltas)
    known = [0.0]  # rising
    for block in np.lexsort((sizes, noise)):
        place = bisect(known, sizes[block])
        near = min(known[place - 1 : place + 1], key=lambda one: abs(one - sizes[block]))
        if abs(near - sizes[block]) > noise[block]:
            known.insert(place, near := float(sizes[block]))
        sizes[block] = near
    return np.copysign(sizes, deltas) + 0.0


def _p_t(deltas: Floats) -> float | None:
    sd = spread(deltas)
    if sd is None:
        return None
    mean = mean_of(deltas)
    if sd == 0:  # the limit of ever smaller spreads
        return 1.0 if mean == 0 else 0.0
    t = mean / (sd / math.sqrt(len(deltas)))
    return float(2 * stats.t.sf(abs(t), len(deltas) - 1))


def _p_sign_flip(deltas: Floats, a: Floats, b: Floats) -> float | None:
    """Chance of a sum at least as large; sums that differ by the values' rounding are equal."""
    if len(deltas) < 2:
        return None
    rounding = TIE * float(np.maximum(np.abs(a), np.abs(b)).sum())
    bar = abs(float(deltas.sum())) - rounding
    result = stats.permutation_test(
        (deltas,),
        lambda x, axis: (np.abs(x.sum(axis=axis)) >= bar).astype(float),
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_batch(deltas),
        rng=np.random.default_rng(0),
    )
    return float(result.pvalue)


def _p_wilcoxon(deltas: Floats) -> float | None:
    if len(deltas) < 2:
        return None
    if not deltas.any():
        return 1.0  # no rank speaks against equality
    return float(stats.wilcoxon(deltas).pvalue)


def _bca(deltas: Floats) -> Interval | None:
    if len(deltas) < FEWEST_FOR_BCA or not spread(deltas):
        return None
    result = stats.bootstrap(
        (deltas,),
        np.mean,
        confidence_level=LEVEL,
        method="BCa",
        n_resamples=RESAMPLES,
        batch=_batch(deltas),
        rng=np.random.default_rng(0),
    )
    low, high = (float(end) for end in result.confidence_interval)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _batch(deltas: Floats) -> int:
    """Resamples that are made at a time."""
    return max(1, ROOM // len(deltas))


def _welch(a: Floats, b: Floats) -> Interval | None:
    if len(a) < 2:
        return None
    if spread(a) == 0 and spread(b) == 0:
        gap = mean_of(b) - mean_of(a)
        return gap, gap
    means = CompareMeans(DescrStatsW(b), DescrStatsW(a))
    low, high = means.tconfint_diff(alpha=1 - LEVEL, usevar="unequal")
    return float(low), float(high)


def _tost(deltas: Floats, min_effect: float) -> float | None:
    sd = spread(deltas)
    if sd is None or min_effect <= 0:
        return None
    if sd == 0:
        return 0.0 if abs(mean_of(deltas)) < min_effect else 1.0
    return float(DescrStatsW(deltas).ttost_mean(-min_effect, min_effect)[0])
