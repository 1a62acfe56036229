"""Collapse: the features have lost nearly all that an untrained encoder's have.

A falling loss does not tell it from learning. The start is that of the untrained encoder of the
run's seed, so that a run that goes on knows it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stoplab_platform.errors import StoplabError

LEAST = {"collapse/feature_std": 0.0, "collapse/pooled_std": 0.0, "collapse/rankme": 1.0}
"""The measures that tell it, and what each comes to when all features are the same."""
LEFT = 0.1  # of what a measure had above that at the start: less is a collapse


class Collapsed(StoplabError):
    """The features collapsed, and the spec says that the run ends then."""


@dataclass(frozen=True)
class Collapse:
    """The first measure that told it."""

    step: int
    measure: str
    value: float
    start: float

    @property
    def message(self) -> str:
        """A sentence for people."""
        return (
            f"the features collapsed: {self.measure} is {self.value:.3g} at step {self.step}, "
            f"untrained it was {self.start:.3g}"
        )


class Alarm:
    """Knows the measures of the start."""

    def __init__(self, start: Mapping[str, float]) -> None:
        self._start = {name: start[name] for name in LEAST if name in start}

    def heard(self, step: int, metrics: Mapping[str, float]) -> Collapse | None:
        """The collapse that a step's metrics tell of, if they do."""
        for name, start in self._start.items():
            least = LEAST[name]
            if name in metrics and metrics[name] - least < LEFT * (start - least):
                return Collapse(step, name, metrics[name], start)
        return None
