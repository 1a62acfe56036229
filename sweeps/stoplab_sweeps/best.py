"""A sweep's best point, how sure that is, and the points that cannot be told apart from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy import stats

from stoplab_platform.ledger import Cell, CellState
from stoplab_platform.specs import SweepSpec
from stoplab_sweeps.cells import by_point, comparable
from stoplab_sweeps.power import spread
from stoplab_sweeps.space import label

Interval = tuple[float, float]


@dataclass(frozen=True)
class Standing:
    """A point and what it reached."""

    point: dict[str, Any]
    """Dotted field to value."""
    values: dict[int, float]
    """Seed to value, of runs that came to their end."""

    @property
    def mean(self) -> float:
        """Over its seeds."""
        return fmean(self.values.values())

    @property
    def ci95(self) -> Interval | None:
        """The t-interval of the mean; None with one seed."""
        return t_interval(list(self.values.values()))

    def plain(self) -> dict[str, Any]:
        """As JSON: point, mean, ci95, n."""
        ci95 = None if self.ci95 is None else list(self.ci95)
        return {"point": self.point, "mean": self.mean, "ci95": ci95, "n": len(self.values)}


@dataclass(frozen=True)
class Best:
    """The best point, and the rest of what is not told apart from it."""

    metric: str
    """What decides."""
    best: Standing
    """The point with the best mean."""
    tied: tuple[Standing, ...] | None
    """Points whose paired difference to the best has a 95 % interval that holds 0, best first;
    None where nothing can be said of any point."""
    n_points: int
    """Points that were compared, the best among them."""
    n_unjudged: int = 0
    """Those among them that nothing can be said of: fewer than two seeds in common with the
    best, or the same difference in all of them."""

    def plain(self) -> dict[str, Any]:
        """As JSON: the best point, with `tied` (likewise, or null), `n_points`, `n_unjudged`."""
        tied = None if self.tied is None else [one.plain() for one in self.tied]
        counts = {"n_points": self.n_points, "n_unjudged": self.n_unjudged}
        return {**self.best.plain(), "tied": tied, **counts}


def best_of(spec: SweepSpec, cells: Sequence[Cell]) -> Best | None:
    """The best point by its mean over the replicates; None before the first result.

    Of a population, the newest complete generation counts. Points that have all their replicates
    go before those that have not. The intervals are of each
    pair alone: among many points, the best one's own mean is flattered by having been chosen.
    """
    found = [one for group in by_point(comparable(cells)) if (one := _standing(spec, group)).values]
    whole = [one for one in found if len(one.values) >= spec.replicates]
    sign = -1 if spec.objective.mode == "max" else 1
    ranked = sorted(whole or found, key=lambda one: sign * one.mean)
    if not ranked:
        return None
    best, *others = ranked
    differences = [(one, paired(best, one)) for one in others]
    judged = [(one, ends) for one, ends in differences if ends is not None]
    tied = tuple(one for one, (low, high) in judged if low <= 0 <= high)
    unjudged = len(others) - len(judged)
    return Best(spec.objective.metric, best, tied if judged else None, len(ranked), unjudged)


def paired(one: Standing, other: Standing) -> Interval | None:
    """The 95 % t-interval of the mean difference over common seeds.

    None below two, and where they all differ by the same: that is no sign of certainty but of
    runs that their seed did not reach.
    """
    common = sorted(one.values.keys() & other.values.keys())
    deltas = np.array([one.values[seed] - other.values[seed] for seed in common])
    return None if spread(deltas) == 0 and deltas.any() else t_interval(deltas.tolist())


def t_interval(values: Sequence[float]) -> Interval | None:
    """The 95 % t-interval of the mean; None below two values."""
    if len(values) < 2:
        return None
    half = float(stats.t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def sentence(found: Best, advice: str = "raise replicates") -> str:
    """The result in words, for a console or a page; ``advice`` where there is one seed a point."""
    best, n = found.best, len(found.best.values)
    if best.ci95 is None:
        spread = "one seed, so no interval"
    else:
        spread = f"95 % interval {best.ci95[0]:.4f} to {best.ci95[1]:.4f}, {n} seeds"
    text = f"best: {label(best.point)}  {found.metric} {best.mean:.4f} ({spread})"
    if found.n_points == 1:
        return text
    if found.tied is None:
        return f"{text}; with one seed a point nothing can be told apart: {advice}"
    unjudged = f"; {found.n_unjudged} could not be judged" if found.n_unjudged else ""
    if not found.tied:
        rest = "every other point that could be judged" if unjudged else "every other point"
        return f"{text}; {rest} is worse beyond doubt (95 %){unjudged}"
    names = ", ".join(label(one.point) for one in found.tied)
    return f"{text}; cannot be told apart from it (95 %): {names}{unjudged}"


def _standing(spec: SweepSpec, group: Sequence[Cell]) -> Standing:
    metric = spec.objective.metric
    ended = [c for c in group if c.state is CellState.SUCCEEDED and metric in c.metrics]
    return Standing(group[0].point, {cell.seed: cell.metrics[metric] for cell in ended})
