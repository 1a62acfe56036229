"""Runs protocols on a frozen encoder.

Nothing is chosen on the test split: strengths are chosen on the validation split, probes are
fitted on the training split alone, and features are standardised by its statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from stoplab_platform.paths import read_json, write_json
from stoplab_platform.specs.base import canonical_digest
from stoplab_platform.specs.evals import Protocol
from stoplab_trainers.data.cache import locked
from stoplab_trainers.evals.features import Bank, FrozenEncoder, On, Pixels
from stoplab_trainers.evals.knn import knn
from stoplab_trainers.evals.linear import linear
from stoplab_trainers.evals.location import location
from stoplab_trainers.evals.low_shot import low_shot
from stoplab_trainers.evals.outcome import Outcome
from stoplab_trainers.evals.splits import Splits, load_splits

__all__ = ["Bank", "Splits", "evaluate", "load_splits", "outcomes", "pixel_encoder"]

VERSION = 2  # of the protocols: raise it when one gives other numbers
RUNNERS: dict[str, Callable[[Any, Bank, On, int], Outcome]] = {
    "knn": knn,
    "linear": linear,
    "low_shot": low_shot,
    "location": location,
}
SEEDED = ("low_shot",)  # protocols that draw something


def evaluate(
    encoder: FrozenEncoder | Bank,
    protocols: Sequence[Protocol],
    splits: Splits,
    *,
    on: On,
    seed: int,
) -> dict[str, float]:
    """Metrics by name, without the split: `{"knn_top1": 0.76}`.

    A `Bank` in the encoder's place keeps what it knows between calls. Raw pixels are judged once
    for each data set and remembered in the cache: every run asks for the same numbers, whatever
    its seed unless a protocol draws.
    """

    def judge() -> dict[str, float]:
        found = outcomes(encoder, protocols, splits, on=on, seed=seed)
        return {name: value for outcome in found for name, value in outcome.metrics.items()}

    if not isinstance(encoder.encoder if isinstance(encoder, Bank) else encoder, Pixels):
        return judge()
    draws = seed if any(protocol.kind in SEEDED for protocol in protocols) else None
    asked = [VERSION, splits.fingerprint, [protocol.plain() for protocol in protocols], on, draws]
    return _remembered(splits.cache / "pixels" / f"{canonical_digest(asked)}.json", judge)


def outcomes(
    encoder: FrozenEncoder | Bank,
    protocols: Sequence[Protocol],
    splits: Splits,
    *,
    on: On,
    seed: int,
) -> list[Outcome]:
    """Every protocol's outcome on one split, with each image's prediction."""
    bank = encoder if isinstance(encoder, Bank) else Bank(encoder, splits)
    return [RUNNERS[protocol.kind](protocol, bank, on, seed) for protocol in protocols]


def pixel_encoder() -> FrozenEncoder:
    """Raw pixels under the same protocols."""
    return Pixels()


def _remembered(path: Path, judge: Callable[[], dict[str, float]]) -> dict[str, float]:
    with locked(path):
        metrics: dict[str, float] | None = read_json(path)
        if metrics is None:
            metrics = judge()
            write_json(path, metrics)
    return metrics
