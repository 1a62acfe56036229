"""Paired statistics: what a difference between two arms is worth, block by block.

Pure functions on numbers; larger is better, as all of stoplab's accuracies are. Where a number
is not defined (no spread, too few blocks) it is None, never NaN, so that it can stand in JSON.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

Verdict = Literal["better", "worse", "equivalent", "inconclusive"]
Interval = tuple[float, float]
Floats = NDArray[np.float64]

LEVEL = 0.95  # of every interval that is named ci95
POWER = 0.8
FEWEST_FOR_BCA = 10
RESAMPLES = 9_999  # sign flips are exact while 2^n is no more, that is to 13 blocks
MOST_BLOCKS = 1_000_000  # designs beyond are no design
DIGITS = 12  # differences closer than this are ties: float noise must not rank them


@dataclass(frozen=True)
class Difference:
    """One arm against the reference over the blocks that hold both; delta = other - reference."""

    delta: float | None
    """Mean of the blocks' differences."""
    ci95: Interval | None
    """Paired-t interval of delta at 95 %."""
    ci_alpha: Interval | None
    """The same at 1 - alpha: the one that decides. Equal to ci95 at alpha 0.05."""
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
    """Blocks to add, see `more_blocks`."""


def difference(
    reference: Sequence[float], other: Sequence[float], *, min_effect: float, alpha: float = 0.05
) -> Difference:
    """Compare two arms; the sequences are aligned by block and finite."""
    a, b = np.asarray(reference, dtype=float), np.asarray(other, dtype=float)
    assert a.shape == b.shape == (len(reference),), "blocks are complete"
    assert np.isfinite([a, b]).all(), "missing values were left out"
    deltas = np.round(b - a, DIGITS)
    n = len(deltas)
    mean = round(float(deltas.mean()), DIGITS) + 0.0 if n else None  # + 0.0: no -0
    sd = spread(deltas)
    interval = t_interval(deltas, 1 - alpha)
    return Difference(
        delta=mean,
        ci95=t_interval(deltas, LEVEL),
        ci_alpha=interval,
        verdict=verdict(interval, min_effect),
        n_blocks=n,
        p_t=_p_t(deltas),
        p_sign_flip=_p_sign_flip(deltas),
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


def spread(values: Floats) -> float | None:
    """Sample standard deviation; None below two values, 0 where they agree to 12 digits."""
    if len(values) < 2:
        return None
    sd = float(values.std(ddof=1))
    return sd if sd > 10.0**-DIGITS else 0.0


def t_interval(deltas: Floats, level: float) -> Interval | None:
    """Student's interval of the mean; equal values give a point, a single one gives None."""
    sd = spread(deltas)
    if sd is None:
        return None
    n, mean = len(deltas), float(deltas.mean())
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * sd / math.sqrt(n)
    return mean - half, mean + half


def more_blocks(deltas: Floats, *, min_effect: float, alpha: float) -> int | None:
    """Blocks to add until a paired t-test finds the effect in 80 % of studies.

    The effect is the observed difference, or min_effect where that is larger: a difference
    nearer to 0 than anybody cares about is not worth finding. None where nothing can be said:
    a single block, or neither a difference nor a min_effect.
    """
    sd = spread(deltas)
    if sd is None:
        return None
    effect = max(abs(float(deltas.mean())), min_effect)
    if effect <= 0:
        return None
    if sd == 0:
        return 0
    needed = _smallest_n(effect / sd, alpha)
    return None if needed is None else max(0, needed - len(deltas))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjustment over several comparisons; those without a p stay None."""
    known = [p for p in p_values if p is not None]
    adjusted = iter(multipletests(known, method="holm")[1] if known else [])
    return [None if p is None else float(next(adjusted)) for p in p_values]


def _p_t(deltas: Floats) -> float | None:
    sd = spread(deltas)
    if sd is None:
        return None
    mean = float(deltas.mean())
    if sd == 0:  # the limit of ever smaller spreads
        return 1.0 if mean == 0 else 0.0
    t = mean / (sd / math.sqrt(len(deltas)))
    return float(2 * stats.t.sf(abs(t), len(deltas) - 1))


def _p_sign_flip(deltas: Floats) -> float | None:
    if len(deltas) < 2:
        return None
    result = stats.permutation_test(
        (deltas,),
        lambda x, axis: x.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
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
        rng=np.random.default_rng(0),
    )
    low, high = (float(end) for end in result.confidence_interval)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _welch(a: Floats, b: Floats) -> Interval | None:
    if len(a) < 2:
        return None
    if spread(a) == 0 and spread(b) == 0:
        gap = float(b.mean() - a.mean())
        return gap, gap
    means = CompareMeans(DescrStatsW(b), DescrStatsW(a))
    low, high = means.tconfint_diff(alpha=1 - LEVEL, usevar="unequal")
    return float(low), float(high)


def _tost(deltas: Floats, min_effect: float) -> float | None:
    sd = spread(deltas)
    if sd is None or min_effect <= 0:
        return None
    if sd == 0:
        return 0.0 if abs(float(deltas.mean())) < min_effect else 1.0
    return float(DescrStatsW(deltas).ttost_mean(-min_effect, min_effect)[0])


def _smallest_n(effect_size: float, alpha: float) -> int | None:
    """The fewest blocks with the wanted power, found by doubling and halving."""
    high = 2
    while _power(effect_size, high, alpha) < POWER:
        high *= 2
        if high > MOST_BLOCKS:
            return None
    low = max(1, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        if _power(effect_size, middle, alpha) < POWER:
            low = middle
        else:
            high = middle
    return high


def _power(effect_size: float, n: int, alpha: float) -> float:
    """Power of the two-sided paired t-test; statsmodels' own has NaN where this has the tail."""
    away, critical = effect_size * math.sqrt(n), float(stats.t.isf(alpha / 2, n - 1))
    near = float(stats.nct.sf(critical, n - 1, away))
    far = float(stats.nct.cdf(-critical, n - 1, away))
    # SciPy gives NaN for the far tail once it is smaller than every digit.
    return near if math.isnan(far) else near + far
