"""Runs protocols on a frozen encoder.

Nothing is chosen on the test split: strengths are chosen on the validation split, probes are
fitted on the training split alone, and features are standardised by its statistics.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from stoplab_platform.errors import DataError
from stoplab_platform.files import read_json, write_json
from stoplab_platform.scorebook import Score, Shown
from stoplab_platform.specs.base import canonical_digest
from stoplab_platform.specs.evals import Protocol, labelled, versioned
from stoplab_trainers.data.cache import locked
from stoplab_trainers.evals.features import PATCH_IMAGES, Bank, FrozenEncoder, On, Pixels
from stoplab_trainers.evals.finetune import finetune
from stoplab_trainers.evals.knn import knn
from stoplab_trainers.evals.linear import linear
from stoplab_trainers.evals.linear_sgd import linear_sgd
from stoplab_trainers.evals.location import location
from stoplab_trainers.evals.low_shot import listed_rows, low_shot, read_list
from stoplab_trainers.evals.outcome import Outcome, interval, spelled
from stoplab_trainers.evals.robustness import robustness
from stoplab_trainers.evals.segmentation import IGNORED, segmentation
from stoplab_trainers.evals.splits import PARTS, Splits, load_splits

log = logging.getLogger("stoplab.evaluate")

__all__ = ["Bank", "Splits", "evaluate", "load_splits", "outcomes", "pixel_encoder", "scores"]

RUNNERS: dict[str, Callable[[Any, Bank, On, int], Outcome]] = {
    "knn": knn,
    "linear": linear,
    "linear_sgd": linear_sgd,
    "low_shot": low_shot,
    "location": location,
    "robustness": robustness,
    "finetune": finetune,
    "segmentation": segmentation,
}
T = TypeVar("T")
QUIET_S = 5.0  # a protocol that takes no longer is not spoken of
SEEDED = ("low_shot", "linear_sgd", "finetune")  # protocols that draw something
ROWS = TypeAdapter(list[Score])
FORMAT = 3  # of remembered rows: raise it when they hold more


def evaluate(
    encoder: FrozenEncoder | Bank,
    protocols: Sequence[Protocol],
    splits: Splits,
    *,
    on: On,
    seed: int,
) -> dict[str, float]:
    """Metrics by name, without the split: `{"knn_top1": 0.76}`."""
    found = scores(encoder, protocols, splits, on=on, seed=seed, shown=on)
    return {one.metric: one.value for one in found}


def scores(
    encoder: FrozenEncoder | Bank,
    protocols: Sequence[Protocol],
    splits: Splits,
    *,
    on: On,
    seed: int,
    shown: Shown,
) -> list[Score]:
    """A row for every metric, under the split ``shown``.

    A `Bank` in the encoder's place keeps what it knows between calls. What has an identity, as
    raw pixels have, is judged once by each protocol and remembered in the cache: every run on the
    same images asks for the pixels' numbers, every arm of a comparison for the same first weights.
    """
    bank = encoder if isinstance(encoder, Bank) else Bank(encoder, splits)
    rows = []
    for protocol in protocols:
        rows += _remembered(protocol, bank, splits, on, seed, shown)
    return rows


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
    return [_outcome(protocol, bank, splits, on, seed) for protocol in protocols]


def scored(protocols: Sequence[Protocol], found: Sequence[Outcome], shown: Shown) -> list[Score]:
    """Outcomes as rows, each with its interval."""
    rows = []
    for protocol, outcome in zip(protocols, found, strict=True):
        for metric, value in outcome.metrics.items():
            low, high = interval(outcome.per_image[metric], outcome.of_sums)
            row = Score(
                protocol=protocol.kind,
                version=protocol.version,
                split=shown,
                metric=metric,
                value=value,
                low=low,
                high=high,
                n=len(outcome.per_image[metric]),
                chosen=outcome.chosen,
                detail=outcome.detail,
            )
            rows.append(row)
    return rows


def _outcome(protocol: Protocol, bank: Bank, splits: Splits, on: On, seed: int) -> Outcome:
    began = time.monotonic()
    found = _told(protocol, RUNNERS[protocol.kind](protocol, bank, on, seed), splits)
    seconds = time.monotonic() - began
    if seconds > QUIET_S:
        told = versioned(protocol), on, seconds, spelled(found.metrics)
        log.info("%s on %s: %.0f s  %s", *told)
    return found


def _told(protocol: Protocol, found: Outcome, splits: Splits) -> Outcome:
    """The outcome under the protocol's label, with its options and the rows it was fitted on."""
    options = protocol.plain()
    for name in ("kind", "every_epochs"):
        del options[name]

    def named(told: Mapping[str, T]) -> dict[str, T]:
        return {labelled(name, protocol.label): value for name, value in told.items()}

    return replace(
        found,
        metrics=named(found.metrics),
        per_image=named(found.per_image),
        predictions=named(found.predictions),
        detail={"options": options, "rows": len(splits.train), **found.detail},
    )


def asked_for(protocols: Sequence[Protocol]) -> list[Any]:
    """What decides the protocols' numbers: versions and options, but not when they run.

    Of a list of samples what it holds, wherever it lies.
    """
    asked = []
    for one in protocols:
        options = one.model_copy(update={"every_epochs": None}).plain(defaults=False)
        if one.kind == "low_shot" and one.list is not None:
            options["list"] = hashlib.sha256(read_list(Path(one.list)).encode()).hexdigest()
        asked.append([versioned(one), options])
    return asked


def check_data(protocols: Sequence[Protocol], splits: Splits) -> None:
    """DataError where the labelled data are not what a protocol needs."""
    for one in protocols:
        if one.kind == "segmentation":
            for name in PARTS:
                masks = getattr(splits, name).masks(PATCH_IMAGES)
                if bool((masks == IGNORED).all()):
                    raise DataError(
                        f"the masks of the {name} split's first {len(masks)} images hold no class, "
                        f"{IGNORED} alone; give masks with a class index a pixel"
                    )
        if one.kind == "linear_sgd" and len(splits.train) < 2:
            raise DataError("linear_sgd needs two labelled images or more to train on; here is one")
        if one.kind == "low_shot" and one.list is not None:
            listed_rows(Path(one.list), splits)


def pixel_encoder() -> FrozenEncoder:
    """Raw pixels under the same protocols."""
    return Pixels()


def _remembered(
    protocol: Protocol, bank: Bank, splits: Splits, on: On, seed: int, shown: Shown
) -> list[Score]:
    def judge() -> list[Score]:
        return scored([protocol], outcomes(bank, [protocol], splits, on=on, seed=seed), shown)

    if bank.identity is None:
        return judge()
    draws = seed if protocol.kind in SEEDED else None
    asked = [FORMAT, bank.identity, splits.fingerprint, *asked_for([protocol]), on, shown, draws]
    path = splits.cache / "scores" / f"{canonical_digest(asked)}.json"
    with locked(path):
        kept = read_json(path)
        if kept is not None:
            return ROWS.validate_python(kept)
        found = judge()
        write_json(path, ROWS.dump_python(found, mode="json"))
        return found
