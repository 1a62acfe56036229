"""The response surface: a metric over noise scale and effective masked fraction.

A pure function from measured rows to plain data (surface.json). Rows of every grid stand for
ratios, columns for noise scales. Noise 0 stands for deterministic positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any, Literal

import numpy as np
from scipy import stats

from stoplab_sweeps.surface_fit import Fit, Floats, expected_improvement

FEWEST = 3  # points that a surface needs
STEPS = 33  # values of an axis of the grid
FINE = 201  # noise scales among which a ridge is sought
LEVEL = 0.95  # of every interval
SAME_RATIO = 0.005  # two masked fractions closer than this are one
NEXT = 5  # points that are proposed
APART = 0.15  # distance between two of them, in the unit square
DIGITS = 6

Mode = Literal["max", "min"]


@dataclass(frozen=True)
class Row:
    """One finished run."""

    noise_std: float
    """0 where positions are deterministic."""
    ratio: float
    """Effective masked fraction."""
    seed: int
    value: float
    hours: float | None = None
    """What it took, in the unit that `surface` is told."""


@dataclass(frozen=True)
class Point:
    """The runs at one place."""

    noise_std: float
    ratio: float
    values: Mapping[int, float]
    """By seed."""
    hours: float | None

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.values.values())


def surface(
    rows: Sequence[Row], *, metric: str, mode: Mode = "max", hours_unit: str = "CPU-hours"
) -> dict[str, Any]:
    """The surface as JSON types; `reason` says why there is none, and the grids are null then."""
    points = _points(rows)
    found = _empty(points, metric, mode, hours_unit)
    varied = [column for column in (0, 1) if np.ptp([_place(p)[column] for p in points] or [0]) > 0]
    if len(points) < FEWEST or not varied:
        found["reason"] = (
            f"{len(points)} measured point(s) over noise scale and masked fraction, where "
            f"{FEWEST} different ones are needed"
        )
        return found
    sign = 1.0 if mode == "max" else -1.0
    axes = _axes(points)
    grid = np.array([(noise, ratio) for ratio in axes[1] for noise in axes[0]])
    shape = (len(axes[1]), len(axes[0]))
    fit = _fit(points, varied)
    mean, std = fit.at(grid[:, varied])
    found |= {
        "axes": {"noise_std": _plain(axes[0]), "ratio": _plain(axes[1])},
        "mean": _plain(mean.reshape(shape)),
        "std": _plain(std.reshape(shape)),
        "ridge": _ridge(fit, varied, axes, sign) if 0 in varied else [],
        "next_points": _next(points, fit, varied, grid, sign, hours_unit),
    }
    return found | _delta(points, varied, grid, shape, sign)


def _empty(points: Sequence[Point], metric: str, mode: Mode, hours_unit: str) -> dict[str, Any]:
    return {
        "metric": metric,
        "mode": mode,
        "level": LEVEL,
        "hours_unit": hours_unit,
        "axes": None,
        "mean": None,
        "std": None,
        "points": [_told(point) for point in points],
        "ridge": [],
        "delta": None,
        "delta_points": [],
        "beyond_doubt": None,
        "next_points": [],
        "importance": None,
        "reason": None,
    }


def _points(rows: Iterable[Row]) -> list[Point]:
    groups: dict[tuple[float, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((round(row.ratio, DIGITS), round(row.noise_std, DIGITS)), []).append(row)
    return [
        Point(
            noise_std=noise,
            ratio=ratio,
            values={row.seed: row.value for row in group},
            hours=fmean(known) if (known := [r.hours for r in group if r.hours]) else None,
        )
        for (ratio, noise), group in sorted(groups.items())
    ]


def _told(point: Point) -> dict[str, Any]:
    values = list(point.values.values())
    return {
        "noise_std": point.noise_std,
        "ratio": point.ratio,
        "mean": round(point.mean, DIGITS),
        "n": len(values),
        "ci95": _interval(values),
    }


def _interval(values: Sequence[float]) -> list[float] | None:
    """Student's interval of the mean; None for a single value."""
    if len(values) < 2:
        return None
    half = _reach(len(values) - 1) * math.sqrt(variance(values) / len(values))
    return [round(fmean(values) - half, DIGITS), round(fmean(values) + half, DIGITS)]


def _reach(freedom: int) -> float:
    """Standard deviations from the middle to the end of an interval."""
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def _place(point: Point) -> tuple[float, float]:
    return point.noise_std, point.ratio


def _axes(points: Sequence[Point]) -> tuple[Floats, Floats]:
    places = np.array([_place(point) for point in points])
    noise, ratio = (_steps(places[:, column]) for column in (0, 1))
    return noise, ratio


def _steps(values: Floats) -> Floats:
    low, high = float(values.min()), float(values.max())
    return np.linspace(low, high, STEPS) if high > low else np.array([low])


def _fit(points: Sequence[Point], varied: list[int]) -> Fit:
    inputs = np.array([_place(point) for point in points])[:, varied]
    values = np.array([point.mean for point in points])
    pooled, _ = _pooled([list(point.values.values()) for point in points])
    known = None if pooled is None else np.array([pooled / len(p.values) for p in points])
    return Fit.of(inputs, values, known)


def _pooled(groups: Sequence[Sequence[float]]) -> tuple[float | None, int]:
    """Variance inside the groups, and its degrees of freedom; None without replicates."""
    repeated = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in repeated)
    if freedom < 2:
        return None, max(1, len(groups) - 1)
    return sum(variance(group) * (len(group) - 1) for group in repeated) / freedom, freedom


def _ridge(
    fit: Fit, varied: list[int], axes: tuple[Floats, Floats], sign: float
) -> list[dict[str, float]]:
    """The best noise scale at each ratio."""
    noises = np.linspace(axes[0][0], axes[0][-1], FINE)
    found = []
    for ratio in axes[1]:
        mean, _ = fit.at(np.array([(noise, ratio) for noise in noises])[:, varied])
        best = int((sign * mean).argmax())
        place = {"ratio": ratio, "noise_std": noises[best], "mean": mean[best]}
        found.append({name: round(float(value), DIGITS) for name, value in place.items()})
    return found


def _next(
    points: Sequence[Point], fit: Fit, varied: list[int], grid: Floats, sign: float, unit: str
) -> list[dict[str, Any]]:
    """Where to measure next: the most improvement to expect for an hour, some way apart."""
    places = np.array([_place(point) for point in points])
    here, _ = fit.at(places[:, varied])
    mean, std = fit.at(grid[:, varied])
    gain = expected_improvement(sign * mean, std, float((sign * here).max()))
    hours = _hours(points, grid)
    worth = gain if hours is None else gain / hours
    width = np.ptp(places, axis=0)
    unit_grid = grid / np.where(width > 0, width, 1.0)
    chosen: list[int] = []
    for index in np.argsort(-worth, kind="stable"):
        near = [np.linalg.norm(unit_grid[index] - unit_grid[one]) < APART for one in chosen]
        if not any(near) and worth[index] > 0:
            chosen.append(int(index))
        if len(chosen) == NEXT:
            break
    on_gpu = unit == "GPU-hours"
    found = []
    for index in chosen:
        cost = None if hours is None else float(f"{hours[index]:.4g}")
        rate = None if hours is None else float(f"{worth[index]:.4g}")
        found.append(
            {
                "noise_std": round(float(grid[index, 0]), DIGITS),
                "ratio": round(float(grid[index, 1]), DIGITS),
                "mean": round(float(mean[index]), DIGITS),
                "std": round(float(std[index]), DIGITS),
                "expected_improvement": float(f"{gain[index]:.4g}"),
                "hours": cost,
                "ei_per_hour": rate,
                "gpu_hours": cost if on_gpu else None,
                "ei_per_gpu_hour": rate if on_gpu else None,
            }
        )
    return found


def _hours(points: Sequence[Point], grid: Floats) -> Floats | None:
    """What a run takes anywhere: measured hours, weighted by inverse distance to the fourth."""
    known = [point for point in points if point.hours]
    if not known:
        return None
    places = np.array([_place(point) for point in known])
    width = np.ptp(np.vstack([places, grid]), axis=0)
    scale = np.where(width > 0, width, 1.0)
    away = (grid[:, None, :] - places[None, :, :]) / scale
    weight = 1.0 / ((away**2).sum(axis=2) ** 2 + 1e-9)
    hours = np.array([point.hours for point in known], dtype=float)
    found: Floats = weight @ hours / weight.sum(axis=1)
    return found


def _delta(
    points: Sequence[Point], varied: list[int], grid: Floats, shape: tuple[int, int], sign: float
) -> dict[str, Any]:
    """The difference to deterministic positions at the same ratio, seed by seed."""
    measured, anchors = _differences(points)
    ratios = {ratio for _, ratio, _ in measured}
    if len(measured) < 2 or (1 in varied and len(ratios) < 2):
        return {"delta": None, "beyond_doubt": None}
    columns = [0, 1] if len(ratios) > 1 else [0]
    pooled, freedom = _pooled([values for _, _, values in measured])
    inputs = np.array([(noise, ratio) for noise, ratio, _ in measured] + anchors)[:, columns]
    means = np.array([fmean(values) for _, _, values in measured] + [0.0] * len(anchors))
    # Without noise there is no difference, whatever the runs say.
    errors = [pooled / len(values) for _, _, values in measured] if pooled is not None else []
    known = np.array(errors + [0.0] * len(anchors)) if errors else None
    mean, std = Fit.of(inputs, means, known).at(grid[:, columns])
    reach = _reach(freedom)
    return {
        "delta": {"mean": _plain(mean.reshape(shape)), "std": _plain(std.reshape(shape))},
        "delta_points": [_told(Point(n, r, dict(enumerate(v)), None)) for n, r, v in measured],
        "beyond_doubt": ((sign * mean - reach * std).reshape(shape) > 0).tolist(),
    }


def _differences(
    points: Sequence[Point],
) -> tuple[list[tuple[float, float, list[float]]], list[tuple[float, float]]]:
    """(noise, ratio, differences) of each point that has a partner; where the partners lie."""
    still = [point for point in points if point.noise_std == 0]
    measured, used = [], set()
    for point in points:
        partner = min(still, key=lambda one: abs(one.ratio - point.ratio), default=None)
        if point.noise_std == 0 or partner is None:
            continue
        shared = sorted(point.values.keys() & partner.values.keys())
        if shared and math.isclose(point.ratio, partner.ratio, abs_tol=SAME_RATIO):
            deltas = [point.values[seed] - partner.values[seed] for seed in shared]
            measured.append((point.noise_std, point.ratio, deltas))
            used.add((0.0, partner.ratio))
    return measured, sorted(used)


def _plain(values: Floats) -> Any:
    return np.round(values, DIGITS).tolist()
