"""All pictures and numbers of one run's weights, as they stand at a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from stoplab_platform.specs import RunSpec
from stoplab_trainers.data.loader import normalise
from stoplab_trainers.diagnostics import pictures
from stoplab_trainers.diagnostics.coverage import Coverage, coverage
from stoplab_trainers.diagnostics.landing import landing, landing_stats, summed_up
from stoplab_trainers.diagnostics.masks import masks_figure
from stoplab_trainers.diagnostics.noise import position_stats, spectrum, spectrum_stats
from stoplab_trainers.diagnostics.pictures import NO_NOISE, Points
from stoplab_trainers.diagnostics.predictions import Predicted, predicted
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import Jepa

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
    """At most a batch, shown whole; on the CPU."""
    series: Mapping[str, Points] = field(default_factory=dict)
    """The run's metrics by step; empty where they are not known."""


@dataclass
class Album:
    """What was drawn and found."""

    pictures: list[Picture] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    """What does not apply, and why."""
    numbers: dict[str, Any] = field(default_factory=dict)


def album(subject: Subject, folder: Path, draws: int = DRAWS, *, masks: bool = True) -> Album:
    """Draw everything below ``folder``, ``draws`` (two or more) of each prediction.

    ``masks``: also those, which a run draws at its start.
    """
    made, spec = Album(), subject.spec
    folder.mkdir(parents=True, exist_ok=True)
    if masks:
        masks_figure(spec, subject.images, folder / MASKS.file)
        made.pictures.append(MASKS)
    seen = coverage(spec)
    pictures.coverage_picture(seen, folder / COVERAGE.file)
    made.pictures.append(COVERAGE)
    made.numbers["coverage"] = _coverage_numbers(seen)
    made.numbers["noise"] = position_stats(subject.model, spec)
    _draw_positions(made, subject, folder)
    _draw_predictions(made, subject, folder, draws)
    if subject.series:
        noisy = subject.model.predictor.noise.noise_std > 0
        pictures.history_picture(subject.series, noisy, folder / HISTORY.file)
        made.pictures.append(HISTORY)
        made.numbers["history"] = dict(subject.series)
    if not subject.series:
        made.absent.append(f"{HISTORY.title}: this run's metrics are not at hand.")
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


def shown_patches(grid: int) -> Int64[Tensor, " n"]:
    """The patches of positions.png: the corner, a quarter in, the centre, the right edge."""
    places = [(0, 0), (grid // 4, grid // 4), (grid // 2, grid // 2), (grid // 2, grid - 1)]
    return torch.tensor(sorted({row * grid + column for row, column in places}))


def _draw_positions(made: Album, subject: Subject, folder: Path) -> None:
    spec, model = subject.spec, subject.model
    values = spectrum(model)
    if values is None:
        made.absent.append(f"{POSITIONS.title}: {_flat(NO_NOISE)}")
        return
    at = shown_patches(spec.grid)
    shares = landing(model, spec, at, LANDINGS)
    std = model.predictor.noise.noise_std
    title = f"Patch nearest to a noised position (noise_std {std:g}, {LANDINGS} draws)"
    pictures.positions_picture(
        subject.images[0], at, shares, values, title, folder / POSITIONS.file
    )
    made.pictures.append(POSITIONS)
    length = made.numbers["noise"]["stop/displacement_patches"]
    made.numbers["noise"] |= {
        **landing_stats(model, spec),
        **spectrum_stats(values),
        "noise_std_for_one_patch": std / length if length else None,
    }
    made.numbers["spectrum"] = values.tolist()
    made.numbers["landing"] = {
        "patches": at.tolist(), "draws": LANDINGS, "shares": shares.tolist(),
        **summed_up(shares, at),
    }  # fmt: skip


def _draw_predictions(made: Album, subject: Subject, folder: Path, draws: int) -> None:
    device = subject.model.predictor.embed.weight.device
    images = subject.images[: subject.spec.optim.batch_size]
    found = predicted(
        subject.model, subject.target, subject.spec, normalise(images.to(device)), draws
    )
    pictures.predictions_picture(images, found, draws, folder / PREDICTIONS.file)
    made.pictures.append(PREDICTIONS)
    if found.spread is None:
        made.absent.append(f"Spread of predictions: {_flat(NO_NOISE)}")
    made.numbers["predictions"] = _prediction_numbers(found, draws)


def _prediction_numbers(found: Predicted, draws: int) -> dict[str, Any]:
    spread = found.spread
    return {
        "draws": draws if spread is not None else 1,
        "error": float(found.error.nanmean()),
        "spread": None if spread is None else float(spread.nanmean()),
        "error_by_patch": _plain(found.error),
        "spread_by_patch": None if spread is None else _plain(spread),
    }


def _coverage_numbers(seen: Coverage) -> dict[str, Any]:
    return {
        **seen.stats(), "images": seen.images, "faults": seen.faults(),
        "context": seen.context.tolist(), "target": seen.target.tolist(),
    }  # fmt: skip


def _plain(values: Tensor) -> list[list[float | None]]:
    """Numbers for JSON, which knows no NaN."""
    return [[None if one != one else one for one in row] for row in values.tolist()]


def _flat(text: str) -> str:
    return text.replace("\n", " ")
