"""What one protocol finds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Outcome:
    """Metrics by name (without the split) and, where classes are told, each image's."""

    metrics: dict[str, float]
    predictions: NDArray[np.int64] | None = None
    """Predicted class of every image of the judged split, in order."""
    chosen: dict[str, float] = field(default_factory=dict)
    """Hyper-parameters, as chosen on the validation split."""


def accuracy(predictions: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Share of right predictions (fraction)."""
    return float((predictions == labels).mean())
