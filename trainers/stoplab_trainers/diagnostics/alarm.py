"""What a falling loss does not tell from learning: collapse, a target that stands still or leaps.

A collapse is told by what is left of the features' spread and rank: of the most that the run has
had, be that the untrained encoder's of its seed or what it has learned since.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Literal

from stoplab_platform.errors import StoplabError

LEAST = {"collapse/feature_std": 0.0, "collapse/pooled_std": 0.0, "collapse/rankme": 1.0}
"""The measures that tell a collapse, and what each comes to when all features are the same."""
LEFT = 0.1  # of the most that a measure had above that: less is a collapse
MOVED = "collapse/target_moved"
STILL = 1e-6  # of their own size: features that moved less between two looks stood still
LEAP, FAR, MOVES = 10.0, 0.5, 3
"""A target that moved so many times as far as the median of the moves before, and by more than
this share of its own size, has leapt; told where so many moves were seen before."""
TAGS = {kind: f"stoplab.{kind}" for kind in ("collapsed", "drifted", "starved")}


class Collapsed(StoplabError):
    """The features collapsed, and the spec says that the run ends then."""


@dataclass(frozen=True)
class Finding:
    """What is wrong with a run that goes on."""

    kind: Literal["collapsed", "drifted", "starved"]
    step: int
    measure: str
    value: float
    start: float | None
    """Of a collapse: the untrained encoder's value."""
    best: float | None
    """Of a collapse: the most it had been; of a leap: the median of the moves before."""
    message: str
    """A sentence for people."""

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class Alarm:
    """Knows the measures of the start, and the most that each has been since.

    ``past`` is what the run had logged before this process: values by metric, in order.
    """

    def __init__(
        self, start: Mapping[str, float], past: Mapping[str, Sequence[float]] | None = None
    ) -> None:
        known = {name: list(filter(math.isfinite, told)) for name, told in (past or {}).items()}
        self._start = {name: start[name] for name in LEAST if name in start}
        self._best = {name: max([one, *known.get(name, [])]) for name, one in self._start.items()}
        self._moves = known.get(MOVED, [])

    def heard(self, step: int, metrics: Mapping[str, float]) -> Finding | None:
        """The collapse that a step's metrics tell of, or else what the target did."""
        return self._collapse(step, metrics) or self._drift(step, metrics)

    def _collapse(self, step: int, metrics: Mapping[str, float]) -> Finding | None:
        for name, start in self._start.items():
            if name not in metrics:
                continue
            value, least, best = metrics[name], LEAST[name], self._best[name]
            if value - least < LEFT * (best - least):
                text = (
                    f"the features collapsed: {name} is {value:.3g} at step {step}, untrained it "
                )
                text += f"was {start:.3g}" + (f", and {best:.3g} since" if best > start else "")
                return Finding("collapsed", step, name, value, start, best, text)
            self._best[name] = max(best, value)
        return None

    def _drift(self, step: int, metrics: Mapping[str, float]) -> Finding | None:
        if MOVED not in metrics:
            return None
        moved, before = metrics[MOVED], list(self._moves)
        self._moves.append(moved)
        if moved < STILL:
            text = (
                f"the target stands still: at step {step} its features are those of a look before"
            )
            return Finding("drifted", step, MOVED, moved, None, None, text)
        usual = median(before) if len(before) >= MOVES else moved
        if moved > max(FAR, LEAP * usual):
            text = (
                f"the target leapt: by step {step} its features moved by {moved:.3g} of their "
                f"size, {usual:.3g} was usual between two looks"
            )
            return Finding("drifted", step, MOVED, moved, None, usual, text)
        return None
