"""Runs protocols on a frozen encoder.

Nothing is chosen on the test split: strengths are chosen on the validation split, probes are
fitted on the training split alone, and features are standardised by its statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from stoplab_platform.specs.evals import Protocol
from stoplab_trainers.evals.features import Bank, FrozenEncoder, On, Pixels
from stoplab_trainers.evals.knn import knn
from stoplab_trainers.evals.linear import linear
from stoplab_trainers.evals.location import location
from stoplab_trainers.evals.low_shot import low_shot
from stoplab_trainers.evals.outcome import Outcome
from stoplab_trainers.evals.splits import Splits, load_splits

__all__ = ["Splits", "evaluate", "load_splits", "outcomes", "pixel_encoder"]

RUNNERS: dict[str, Callable[[Any, Bank, On, int], Outcome]] = {
    "knn": knn,
    "linear": linear,
    "low_shot": low_shot,
    "location": location,
}


def evaluate(
    encoder: FrozenEncoder,
    protocols: Sequence[Protocol],
    splits: Splits,
    *,
    on: On,
    seed: int,
) -> dict[str, float]:
    """Metrics by name, without the split: `{"knn_top1": 0.76}`."""
    found = outcomes(encoder, protocols, splits, on=on, seed=seed)
    return {name: value for outcome in found for name, value in outcome.metrics.items()}


def outcomes(
    encoder: FrozenEncoder,
    protocols: Sequence[Protocol],
    splits: Splits,
    *,
    on: On,
    seed: int,
) -> list[Outcome]:
    """Every protocol's outcome on one split, with each image's prediction; features are shared."""
    bank = Bank(encoder, splits)
    return [RUNNERS[protocol.kind](protocol, bank, on, seed) for protocol in protocols]


def pixel_encoder() -> FrozenEncoder:
    """Raw pixels under the same protocols."""
    return Pixels()
