"""Looks at a growing comparison: how sure each must be, so that all of them err in alpha.

Who looks after 5, 8 and 12 blocks and stops at the first "significant" result errs more often
than alpha. Alpha spending (Lan and DeMets, Biometrika 70, 1983) divides alpha among planned looks:
by a look at the share t of all blocks no more than `spent(t)` may have been erred.

The usual boundaries are those of a Brownian motion; where blocks are few, t-tests at them err in
up to 5.7 %. These are of the paired t-test itself, exact for normal differences, by the recursion
of Armitage, McPherson and Rowe (JRSS A 132, 1969). It has one dimension: t at n blocks is
sqrt(n - 1) tan(angle), with the angle between the vector of differences and those of mean 0, and
without an effect these angles are a Markov chain, see `_above`. Two-sided, alpha / 2 a side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from stoplab_platform.specs.comparison import Spending

Floats = NDArray[np.float64]

CELLS = 128  # of the angles' distribution
LEAST = 1e-13  # chances that sums of floats do not resolve


@dataclass(frozen=True)
class Look:
    """Where a comparison of some blocks stands among its planned looks."""

    looks: list[int]
    """Numbers of blocks at which a verdict may be given."""
    spending: Spending
    """How alpha is spent over them."""
    look: int | None
    """Number of this look, from 1; None between looks."""
    alpha_spent: float
    """Error allowed by all looks so far."""
    alpha_here: float | None
    """Level of the test at this look; None between looks."""
    final: bool
    """Whether this is the last one."""
    next: int | None
    """Blocks at the next look."""


def look_at(
    n_blocks: int, looks: Sequence[int], spending: Spending, *, alpha: float = 0.05
) -> Look:
    """Where ``n_blocks`` stand; looks rise."""
    passed = [n for n in looks if n <= n_blocks]
    number = len(passed) if n_blocks in looks else None
    share = passed[-1] / looks[-1] if passed else 0.0
    return Look(
        looks=list(looks),
        spending=spending,
        look=number,
        alpha_spent=spent(share, spending, alpha),
        alpha_here=None if number is None else levels(tuple(looks), spending, alpha)[number - 1],
        final=n_blocks == looks[-1],
        next=next((n for n in looks if n > n_blocks), None),
    )


def spent(share: float, spending: Spending, alpha: float) -> float:
    """Error of both sides allowed once ``share`` (0 to 1) of all blocks are there.

    `obrien_fleming` keeps nearly all for the end, `pocock` spends it almost evenly.
    """
    if share <= 0:
        return 0.0
    if spending == "pocock":
        return alpha * math.log1p((math.e - 1) * share)
    return 4 * float(stats.norm.sf(stats.norm.isf(alpha / 4) / math.sqrt(share)))


@lru_cache(maxsize=64)
def levels(looks: tuple[int, ...], spending: Spending, alpha: float = 0.05) -> tuple[float, ...]:
    """The two-sided level of the paired t-test at each look."""
    allowed = [spent(n / looks[-1], spending, alpha) for n in looks]
    found = [allowed[0]]
    n = looks[0]
    edges = _edges(n, found[0])
    mass = np.diff(_share_below(edges, n))
    for look, wanted, most in zip(looks[1:], np.diff(allowed), allowed[1:], strict=True):
        while n < look:
            nodes, weights = _nodes(edges, mass)
            n += 1
            if n == look:
                found.append(min(_level(nodes, weights, n, wanted), most))
            edges = _edges(n, found[-1] if n == look else 0.0)
            mass = -np.diff(_above(edges, nodes, n), axis=0) @ weights
    return tuple(found)


def _nodes(edges: Floats, mass: Floats) -> tuple[Floats, Floats]:
    """Two points a cell, with the mean and variance of a density that is straight inside it."""
    width = edges[1] - edges[0]
    slope = np.divide(np.gradient(mass), mass, out=np.zeros_like(mass), where=mass > LEAST)
    means = (edges[1:] + edges[:-1]) / 2 + width / 12 * np.clip(slope, -2, 2)
    apart = width / math.sqrt(12)
    return np.concatenate([means - apart, means + apart]), np.tile(mass / 2, 2)


def _level(nodes: Floats, weights: Floats, n: int, wanted: float) -> float:
    """The level at which those who are left are stopped with the wanted chance.

    Never less than that chance itself, which is the level where nobody has been stopped before:
    it stands where the tail is too thin for the cells, and is a little strict.
    """

    def excess(log_level: float) -> float:
        angle = _angle(math.exp(log_level), n)
        return 2 * float(_above(np.array([angle]), nodes, n)[0] @ weights) - wanted

    # Below the wanted level too few are left to be stopped; at 1 all are.
    if wanted < LEAST or excess(math.log(wanted) - 1) > 0:
        return float(wanted)
    level = math.exp(optimize.brentq(excess, math.log(wanted) - 1, 0.0, xtol=1e-12))
    return max(level, float(wanted))


def _edges(n: int, level: float) -> Floats:
    """Cells of the angles that go on after n blocks, all of them where the level is 0."""
    widest = _angle(max(level, LEAST), n)
    return np.linspace(-widest, widest, CELLS + 1)


def _angle(level: float, n: int) -> float:
    """The angle at which the t-test of n blocks has this two-sided level."""
    return math.atan(float(stats.t.isf(level / 2, n - 1)) / math.sqrt(n - 1))


def _share_below(angles: Floats, n: int) -> Floats:
    """Distribution function of the angle at n blocks: Student's t with n - 1 degrees."""
    return np.asarray(special.stdtr(n - 1, math.sqrt(n - 1) * np.tan(angles)))


def _above(angles: Floats, before: Floats, n: int) -> Floats:
    """Chance [angle, before] of more than ``angles`` at n blocks after ``before`` at n - 1.

    With w = (n - 1) / n and sines for the shares of the mean in the length:
    sin(angle) = sqrt(w) cos(turn) sin(before) + sqrt(1 - w) sin(turn), where the turn has the
    law of the angle itself, whatever came before (Basu: lengths are independent of
    directions). That is one sine: size * sin(turn + shift).
    """
    w = (n - 1) / n
    along, across = math.sqrt(w) * np.sin(before), math.sqrt(1 - w)
    size, shift = np.hypot(along, across), np.arctan2(along, across)
    sines = np.sin(angles)[:, None]
    arc = np.arcsin(np.minimum(np.abs(sines) / size, 1))
    side = np.where(sines < 0, -1, 1)  # below 0: the mirror image's complement
    ends = [np.clip(end - side * shift, -math.pi / 2, math.pi / 2) for end in (arc, math.pi - arc)]
    low, high = (_share_below(end, n) for end in ends)
    return np.where(side < 0, 1 - (high - low), high - low)
