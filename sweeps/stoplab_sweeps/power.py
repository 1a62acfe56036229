"""Power of the paired t-test: how many blocks a difference needs to be found."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.power import TTestPower

POWER = 0.8
ROUNDING = 1e-12  # of the largest value: values closer than this are equal
MOST_BLOCKS = 1_000_000  # designs beyond are no design

Floats = NDArray[np.float64]


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


def power(d_z: float, n: int, alpha: float) -> float:
    """Chance that the two-sided paired t-test of ``n`` blocks finds an effect of ``d_z``.

    statsmodels' own, but where that has NaN: SciPy gives NaN for the tail on the other side once
    it is smaller than every digit, and then the near one is all.
    """
    found = float(TTestPower().power(d_z, n, alpha))
    if math.isfinite(found):
        return found
    critical = stats.t.isf(alpha / 2, n - 1)
    return float(stats.nct.sf(critical, n - 1, abs(d_z) * math.sqrt(n)))


def spread(values: Floats) -> float | None:
    """Sample standard deviation; None below two values, exactly 0 where all are equal.

    Equal to rounding: 0.6 - 0.5 and 0.7 - 0.6 are the same difference.
    """
    if len(values) < 2:
        return None
    return 0.0 if np.ptp(values) <= ROUNDING * np.abs(values).max() else float(values.std(ddof=1))


def _smallest_n(d_z: float, alpha: float) -> int | None:
    """The fewest blocks with the wanted power, found by doubling and halving."""
    high = 2
    while power(d_z, high, alpha) < POWER:
        high *= 2
        if high > MOST_BLOCKS:
            return None
    low = max(1, high // 2)
    while high - low > 1:
        middle = (low + high) // 2
        if power(d_z, middle, alpha) < POWER:
            low = middle
        else:
            high = middle
    return high
