"""Measured points: the runs at each place of a response surface, and how far their means reach."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, variance
from typing import Any

from scipy import stats

from stoplab_sweeps.surface_fit import DIGITS

LEVEL = 0.95  # of every interval


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
    hours: float | None = None

    @property
    def place(self) -> tuple[float, float]:
        """Noise scale and masked fraction."""
        return self.noise_std, self.ratio

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return fmean(self.values.values())

    def plain(self) -> dict[str, Any]:
        """As JSON: noise_std, ratio, mean, n, ci95 (Student's; None for a single run)."""
        return {
            "noise_std": self.noise_std,
            "ratio": self.ratio,
            "mean": round(self.mean, DIGITS),
            "n": len(self.values),
            "ci95": _interval(list(self.values.values())),
        }


def points_of(rows: Iterable[Row]) -> list[Point]:
    """The rows by place, ratio by ratio; of two runs of one seed at one place the first counts."""
    groups: dict[tuple[float, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((round(row.ratio, DIGITS), round(row.noise_std, DIGITS)), []).append(row)
    return [
        Point(
            noise_std=noise,
            ratio=ratio,
            values={row.seed: row.value for row in reversed(group)},
            hours=fmean(known) if (known := [r.hours for r in group if r.hours]) else None,
        )
        for (ratio, noise), group in sorted(groups.items())
    ]


def pooled(groups: Sequence[Sequence[float]]) -> tuple[float, int] | None:
    """Variance inside the groups, and its degrees of freedom; None where those are below two."""
    repeated = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in repeated)
    if freedom < 2:
        return None
    return sum(variance(group) * (len(group) - 1) for group in repeated) / freedom, freedom


def reach(freedom: int) -> float:
    """Standard deviations from the middle to the end of an interval."""
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def _interval(values: Sequence[float]) -> list[float] | None:
    if len(values) < 2:
        return None
    half = reach(len(values) - 1) * math.sqrt(variance(values) / len(values))
    return [round(fmean(values) - half, DIGITS), round(fmean(values) + half, DIGITS)]
