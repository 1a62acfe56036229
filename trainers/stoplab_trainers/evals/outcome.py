"""What one protocol finds, and how far the judged images let it be told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stoplab_platform.randomness import Stream, generator
from stoplab_trainers.evals.draws import BOOTSTRAP

RESAMPLES = 2000
LEVEL = 0.95

PerImage = NDArray[np.float64]
"""What each judged image adds to a metric: [n], of which the metric is the mean, or [n, ...]."""
OfSums = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From sums over images, [resample, ...], to the metric of each resample."""


@dataclass(frozen=True)
class Outcome:
    """Metrics by name (without the split), and what stands behind them."""

    metrics: dict[str, float] = field(default_factory=dict)
    """Empty where the protocol asks for what the encoder does not have."""
    per_image: dict[str, PerImage] = field(default_factory=dict)
    """By metric."""
    predictions: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """By metric: the predicted class of every image of the judged split, in order."""
    chosen: dict[str, float | str] = field(default_factory=dict)
    """Hyper-parameters, as chosen on the validation split."""
    detail: dict[str, Any] = field(default_factory=dict)
    """What else is worth keeping; JSON types."""
    of_sums: OfSums | None = None
    """Where the metrics are not means over images: what they are of the sums."""


def told(
    metric: str, predictions: NDArray[np.int64], labels: NDArray[np.int64], **more: Any
) -> Outcome:
    """The outcome of one metric that is the share of right predictions."""
    return Outcome(
        {metric: accuracy(predictions, labels)},
        {metric: right(predictions, labels)},
        {metric: predictions},
        **more,
    )


def accuracy(predictions: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Share of right predictions (fraction)."""
    return float((predictions == labels).mean())


def right(predictions: NDArray[np.int64], labels: NDArray[np.int64]) -> PerImage:
    """1 where the prediction is right, 0 elsewhere."""
    return np.asarray(predictions == labels, dtype=np.float64)


def interval(per_image: PerImage, of_sums: OfSums | None = None) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval over images, of their mean or what is told.

    Images that add the same are drawn together: how often each value comes up in a resample is
    multinomial. The draws are the same ones for everybody, so that an interval follows from the
    images alone.
    """
    values, counts = np.unique(per_image, return_counts=True, axis=0)
    random, n = generator(0, Stream.EVAL, BOOTSTRAP), len(per_image)
    drawn = random.multinomial(n, counts / n, size=RESAMPLES)
    sums = np.tensordot(drawn, values, axes=1)
    found = sums / n if of_sums is None else of_sums(sums)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def spelled(values: Mapping[str, float]) -> str:
    """Metrics as a line for people."""
    return "  ".join(f"{name} {value:.4f}" for name, value in sorted(values.items()))
