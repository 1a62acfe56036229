"""The response surface: a metric over noise scale and effective masked fraction.

A pure function from measured rows to plain data (surface.json). Rows of every grid stand for
ratios, columns for noise scales. Noise 0 stands for deterministic positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from stoplab_sweeps.surface_delta import NO_DELTA, delta_of
from stoplab_sweeps.surface_fit import DIGITS, Fit, Floats, expected_improvement, plain
from stoplab_sweeps.surface_points import LEVEL, Point, Row, points_of, pooled

FEWEST = 3  # points that a surface needs
STEPS = 33  # values of an axis of the grid
FINE = 201  # noise scales among which a ridge is sought
NEXT = 5  # points that are proposed
APART = 0.15  # distance between two of them, in the unit square

Mode = Literal["max", "min"]


def surface(
    rows: Sequence[Row], *, metric: str, mode: Mode = "max", hours_unit: str = "CPU-hours"
) -> dict[str, Any]:
    """The surface as JSON types; `reason` says why there is none, and the grids are null then."""
    points = points_of(rows)
    found = _empty(points, metric, mode, hours_unit)
    varied = [column for column in (0, 1) if np.ptp([p.place[column] for p in points] or [0]) > 0]
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
        "axes": {"noise_std": plain(axes[0]), "ratio": plain(axes[1])},
        "mean": plain(mean.reshape(shape)),
        "std": plain(std.reshape(shape)),
        "ridge": _ridge(fit, varied, axes, sign) if 0 in varied else [],
        "next_points": _next(points, fit, varied, grid, sign, hours_unit),
    }
    return found | delta_of(points, grid, shape, sign)


def _empty(points: Sequence[Point], metric: str, mode: Mode, hours_unit: str) -> dict[str, Any]:
    return {
        "metric": metric,
        "mode": mode,
        "level": LEVEL,
        "hours_unit": hours_unit,
        "axes": None,
        "mean": None,
        "std": None,
        "points": [point.plain() for point in points],
        "ridge": [],
        **NO_DELTA,
        "next_points": [],
        "importance": None,
        "reason": None,
    }


def _axes(points: Sequence[Point]) -> tuple[Floats, Floats]:
    places = np.array([point.place for point in points])
    noise, ratio = (_steps(places[:, column]) for column in (0, 1))
    return noise, ratio


def _steps(values: Floats) -> Floats:
    low, high = float(values.min()), float(values.max())
    return np.linspace(low, high, STEPS) if high > low else np.array([low])


def _fit(points: Sequence[Point], varied: list[int]) -> Fit:
    inputs = np.array([point.place for point in points])[:, varied]
    values = np.array([point.mean for point in points])
    known = pooled([list(point.values.values()) for point in points])
    errors = None if known is None else np.array([known[0] / len(p.values) for p in points])
    return Fit.of(inputs, values, errors)


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
    places = np.array([point.place for point in points])
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
    places = np.array([point.place for point in known])
    width = np.ptp(np.vstack([places, grid]), axis=0)
    scale = np.where(width > 0, width, 1.0)
    away = (grid[:, None, :] - places[None, :, :]) / scale
    weight = 1.0 / ((away**2).sum(axis=2) ** 2 + 1e-9)
    hours = np.array([point.hours for point in known], dtype=float)
    found: Floats = weight @ hours / weight.sum(axis=1)
    return found
