"""All pictures and numbers of one run's weights, as they stand at a step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from stoplab_platform.specs import RunSpec
from stoplab_trainers.data.loader import normalise
from stoplab_trainers.diagnostics import pictures
from stoplab_trainers.diagnostics.coverage import Coverage, coverage
from stoplab_trainers.diagnostics.landing import landing, landing_stats, summed_up
from stoplab_trainers.diagnostics.masks import masks_figure
from stoplab_trainers.diagnostics.noise import (
    is_known,
    position_stats,
    spectrum,
    spectrum_stats,
)
from stoplab_trainers.diagnostics.pictures import NO_NOISE, Points
from stoplab_trainers.diagnostics.predictions import Predicted, Shown, predicted, shown
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import Jepa

log = logging.getLogger("stoplab.diagnostics")

LANDINGS = 2000  # draws for each patch of positions.png
DRAWS = 16  # of each prediction


class Picture(NamedTuple):
    """One picture: its file's name, and a sentence on what is seen."""

    file: str
    title: str
    sentence: str


@dataclass(frozen=True)
class Subject:
    """What is looked at."""

    spec: RunSpec
    model: Jepa
    target: Encoder
    images: UInt8[Tensor, "b 3 h w"]
    """At most `masks.rows_together`, shown whole; on the CPU."""
    series: Mapping[str, Points] = field(default_factory=dict)
    """The run's metrics by step; empty where they are not known."""

    @cached_property
    def normalised(self) -> Float[Tensor, "b 3 h w"]:
        """The images as the encoder is given them."""
        return normalise(self.images.to(self.model.predictor.embed.weight.device))

    @cached_property
    def looks(self) -> list[Shown]:
        """What the encoder makes of them under some masks."""
        return shown(self.model, self.spec, self.normalised)


@dataclass
class Album:
    """What was drawn and found."""

    pictures: list[Picture] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    """What does not apply, and why."""
    numbers: dict[str, Any] = field(default_factory=dict)
    """By part and name; NaN where there is nothing to measure."""


def album(
    subject: Subject, folder: Path, draws: int = DRAWS, *, masks: bool = True, strict: bool = True
) -> Album:
    """Draw everything below ``folder``, ``draws`` (two or more) of each prediction.

    ``masks``: also those, which a run draws at its start. Not ``strict``: what cannot be drawn is
    logged and left out.
    """
    made = Album()
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[Callable[[], None]] = [
        partial(_draw_coverage, made, subject, folder),
        partial(_draw_positions, made, subject, folder),
        partial(_draw_predictions, made, subject, folder, draws),
        partial(_draw_history, made, subject, folder),
    ]
    if masks:
        parts.insert(0, partial(_draw_masks, made, subject, folder))
    for part in parts:
        try:
            part()
        except Exception:
            if strict:
                raise
            log.exception("a picture of the run could not be drawn")
    return made


MASKS = Picture(
    "masks.png", "Masks",
    "What the encoder is shown of an image (context), and the blocks it must predict (targets).",
)  # fmt: skip
COVERAGE = Picture(
    "coverage.png", "Coverage of the grid",
    "How often each patch is context and target; a patch that never is one of them is starved.",
)  # fmt: skip
POSITIONS = Picture(
    "positions.png", "Where noised positions land",
    "The framed patch's position is drawn with its noise many times; colours say how often each "
    "patch is the nearest to it. Below: the strength of the noise by direction, and how far it "
    "moves a position on the grid.",
)  # fmt: skip
PREDICTIONS = Picture(
    "predictions.png", "Predictions under noise",
    "How far the mean prediction of each patch is from what it should be, and how much the "
    "prediction changes from draw to draw; bare patches were in no target block.",
)  # fmt: skip
HISTORY = Picture(
    "history.png", "Over training",
    "Size of projection and mask token, noise against signal, how well places can be read from "
    "features, and what tells of collapse.",
)  # fmt: skip
PICTURES = (MASKS, COVERAGE, POSITIONS, PREDICTIONS, HISTORY)
"""All that there may be."""


def shown_patches(grid: int) -> Int64[Tensor, " n"]:
    """The patches of positions.png: the corner, a quarter in, the centre, the right edge."""
    places = [(0, 0), (grid // 4, grid // 4), (grid // 2, grid // 2), (grid // 2, grid - 1)]
    return torch.tensor(sorted({row * grid + column for row, column in places}))


def _draw_masks(made: Album, subject: Subject, folder: Path) -> None:
    masks_figure(subject.spec, subject.images, folder / MASKS.file)
    made.pictures.append(MASKS)


def _draw_coverage(made: Album, subject: Subject, folder: Path) -> None:
    seen = coverage(subject.spec)
    pictures.coverage_picture(seen, folder / COVERAGE.file)
    made.pictures.append(COVERAGE)
    made.numbers["coverage"] = _coverage_numbers(seen)


def _draw_positions(made: Album, subject: Subject, folder: Path) -> None:
    spec, model = subject.spec, subject.model
    features = torch.cat([look.features.flatten(0, 1) for look in subject.looks])
    numbers = made.numbers["noise"] = position_stats(model, spec, features)
    values = spectrum(model, spec)
    if values is None:
        made.absent.append(f"{POSITIONS.title}: {_flat(NO_NOISE)}")
        return
    at = shown_patches(spec.grid)
    shares = landing(model, spec, at, LANDINGS)
    noise = model.predictor.noise
    std, length = noise.noise_std, numbers["stop/displacement_patches"]
    title = f"Patch nearest to a noised position (noise_std {std:g}, {LANDINGS} draws)"
    pictures.positions_picture(
        subject.images[0], at, shares, values, title, folder / POSITIONS.file
    )
    made.pictures.append(POSITIONS)
    numbers |= {**landing_stats(model, spec), **spectrum_stats(values)}
    if length and is_known(noise):  # the length is proportional to noise_std
        numbers["noise_std_for_one_patch"] = std / length
    made.numbers["spectrum"] = values.tolist()
    made.numbers["landing"] = {
        "patches": at.tolist(), "draws": LANDINGS, "shares": shares.tolist(),
        **summed_up(shares, at),
    }  # fmt: skip


def _draw_predictions(made: Album, subject: Subject, folder: Path, draws: int) -> None:
    found = predicted(
        subject.model, subject.target, subject.spec, subject.normalised, subject.looks, draws
    )
    pictures.predictions_picture(subject.images, found, draws, folder / PREDICTIONS.file)
    made.pictures.append(PREDICTIONS)
    if found.spread is None:
        made.absent.append(f"Spread of predictions: {_flat(NO_NOISE)}")
    made.numbers["predictions"] = _prediction_numbers(found, draws)


def _draw_history(made: Album, subject: Subject, folder: Path) -> None:
    if not subject.series:
        made.absent.append(f"{HISTORY.title}: this run's metrics are not at hand.")
        return
    noisy = subject.model.predictor.noise.noise_std > 0
    pictures.history_picture(subject.series, noisy, folder / HISTORY.file)
    made.pictures.append(HISTORY)
    made.numbers["history"] = dict(subject.series)


def _prediction_numbers(found: Predicted, draws: int) -> dict[str, Any]:
    spread = found.spread
    return {
        "draws": draws if spread is not None else 1,
        "error": float(found.error.nanmean()),
        "error_of_zero": float(found.zero.nanmean()),
        "spread": None if spread is None else float(spread.nanmean()),
        "error_by_patch": found.error.tolist(),
        "spread_by_patch": None if spread is None else spread.tolist(),
    }


def _coverage_numbers(seen: Coverage) -> dict[str, Any]:
    return {
        **seen.stats(), "images": seen.images, "faults": seen.faults(),
        "context": seen.context.tolist(), "target": seen.target.tolist(),
    }  # fmt: skip


def _flat(text: str) -> str:
    return text.replace("\n", " ")
