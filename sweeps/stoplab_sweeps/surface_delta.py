"""The difference to positions without noise over a response surface, and where it is sure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from stoplab_sweeps.surface_fit import Fit, Floats, plain
from stoplab_sweeps.surface_points import Point, pooled, reach

SAME_RATIO = 0.005  # two masked fractions closer than this are one
NO_DELTA: dict[str, Any] = {
    "delta": None,
    "delta_points": [],
    "beyond_doubt": None,
    "beyond_doubt_reason": None,
}


def delta_of(
    points: Sequence[Point], grid: Floats, shape: tuple[int, int], sign: float
) -> dict[str, Any]:
    """The difference to noise 0 at the same ratio, seed by seed, as JSON types.

    ``grid`` [places, 2]: noise scale and ratio of each place; ``shape``: ratios, noise scales.
    `beyond_doubt` marks the places whose own 95 % interval lies above 0: a statement of each place
    alone. Somewhere on a surface without any gain such a place is found more often than once in
    twenty. It is null, with `beyond_doubt_reason`, where the spread from seed to seed is unknown:
    a Gaussian process through single runs takes their luck for the surface.

    All differences at one ratio share the runs without noise there. So half of a difference's
    variance is its own, and half is common to them all: the fit is told of the first, and the
    second, which it would take for surface, is added to what it says.
    """
    measured, anchors = _differences(points)
    ratios = {point.ratio for point in measured}
    if len(measured) < 2 or (len(ratios) < 2 < len({*grid[:, 1]})):
        reason = "too few points have a run without noise beside them, at the same masked fraction"
        return NO_DELTA | {"beyond_doubt_reason": reason}
    columns = [0, 1] if len(ratios) > 1 else [0]
    known = pooled([list(point.values.values()) for point in measured])
    inputs = np.array([point.place for point in measured] + anchors)[:, columns]
    means = np.array([point.mean for point in measured] + [0.0] * len(anchors))
    halves = None if known is None else [known[0] / (2 * len(p.values)) for p in measured]
    # Without noise there is no difference, whatever the runs say.
    own = None if halves is None else np.array(halves + [0.0] * len(anchors))
    fit = Fit.of(inputs, means, own)
    mean, std = fit.at(grid[:, columns])
    if halves is not None:
        std = np.sqrt(std**2 + _common(fit.weights(grid[:, columns]), measured, halves))
    found = NO_DELTA | {
        "delta": {"mean": plain(mean.reshape(shape)), "std": plain(std.reshape(shape))},
        "delta_points": [point.plain() for point in measured],
    }
    if known is None:
        reason = "one run a place tells nothing of the spread from seed to seed; raise replicates"
        return found | {"beyond_doubt_reason": reason}
    if known[0] == 0:
        reason = "no difference varies from seed to seed, as those of different runs would"
        return found | {"beyond_doubt_reason": reason}
    sure = (sign * mean - reach(known[1]) * std).reshape(shape) > 0
    return found | {"beyond_doubt": sure.tolist()}


def _common(weights: Floats, measured: Sequence[Point], variances: Sequence[float]) -> Floats:
    """Variance [places] that the runs without noise bring in, which all points of a ratio share.

    ``weights`` [places, points]: how much each point counts at each place.
    """
    ratios = np.array([point.ratio for point in measured])
    found: Floats = np.zeros(len(weights))
    for ratio in np.unique(ratios):
        here = np.flatnonzero(ratios == ratio)
        found += weights[:, here].sum(axis=1) ** 2 * np.asarray(variances)[here].mean()
    return found


def _differences(points: Sequence[Point]) -> tuple[list[Point], list[tuple[float, float]]]:
    """The difference at each point that has a partner without noise; where the partners lie."""
    still = [point for point in points if point.noise_std == 0]
    measured, used = [], set()
    for point in points:
        partner = min(still, key=lambda one: abs(one.ratio - point.ratio), default=None)
        if point.noise_std == 0 or partner is None:
            continue
        shared = sorted(point.values.keys() & partner.values.keys())
        if shared and math.isclose(point.ratio, partner.ratio, abs_tol=SAME_RATIO):
            deltas = {seed: point.values[seed] - partner.values[seed] for seed in shared}
            measured.append(Point(point.noise_std, point.ratio, deltas))
            used.add((0.0, partner.ratio))
    return measured, sorted(used)
