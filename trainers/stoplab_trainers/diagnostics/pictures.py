"""The pictures of a run's positions, predictions, masks and history. Each writes one PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from stoplab_trainers.diagnostics import canvas
from stoplab_trainers.diagnostics.coverage import Coverage
from stoplab_trainers.diagnostics.landing import grid_distances
from stoplab_trainers.diagnostics.noise import effective_rank
from stoplab_trainers.diagnostics.predictions import Predicted

NO_NOISE = "These positions take no noise:\nevery draw would be the same."
FAINT = 0.4  # gamma of the maps of shares: one draw in a hundred can be seen
Points = Sequence[tuple[int, float]]

CURVES: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Size of the projection A", "Frobenius norm", {"‖A‖": "stop/a_norm"}),
    ("Size of what says \"masked\"", "norm", {
        "mask token": "stop/mask_token_norm", "bias of A": "stop/bias_norm"}),
    ("Noise over signal", "‖A n‖ / ‖A s‖ (rms)", {"ratio": "stop/noise_to_signal"}),
    ("How far the noise moves a position", "patches", {
        "length of the noise": "stop/displacement_patches",
        "to the nearest patch": "stop/landing_patches"}),
    ("Row and column read from features", "R²", {"R²": "position/location_r2"}),
    ("Rank of pooled features", "RankMe", {"RankMe": "collapse/rankme"}),
    ("Spread of features", "standard deviation", {
        "over patches": "collapse/feature_std", "over images": "collapse/pooled_std"}),
    ("Features' distance from their start", "share of their size", {
        "drift": "collapse/target_drift"}),
)  # fmt: skip
"""Panels of `history_picture`: title, unit, metrics by what a person calls them."""
NOISY = {"stop/noise_to_signal", "stop/displacement_patches", "stop/landing_patches"}
"""The metrics that only noise has."""


def coverage_picture(seen: Coverage, path: Path) -> None:
    """How often each patch is context and target."""
    made, axes = canvas.figure(1, 2, 3.6, 3.3, "How often each patch is drawn")
    for axis, name, shares in (
        (axes[0, 0], "Context", seen.context), (axes[0, 1], "Target", seen.target),
    ):  # fmt: skip
        drawn = axis.imshow(shares, cmap="viridis", vmin=0, vmax=max(shares.max(), 1e-9))
        axis.set_title(
            f"{name}: rarest patch {shares.min():.0%}, commonest {shares.max():.0%}",
            fontsize=canvas.SMALL + 1,
        )
        for place in (axis.xaxis, axis.yaxis):
            place.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("column of the patch", fontsize=canvas.SMALL)
        axis.set_ylabel("row of the patch", fontsize=canvas.SMALL)
        canvas.bar(made, drawn, axis, f"share of {seen.images} images")
    canvas.save(made, path)


def positions_picture(
    image: UInt8[Tensor, "3 h w"],
    at: Int64[Tensor, " n"],
    shares: Float[Tensor, "n patch"],
    values: NDArray[np.float64],
    title: str,
    path: Path,
) -> None:
    """Where the noised positions of patches ``at`` land, on an image; the spectrum of Sigma."""
    made, axes = canvas.figure(2, max(3, len(at)), 2.6, 2.8, title)
    side, patches = image.shape[-1], shares.shape[1]
    grid = round(patches**0.5)
    for axis in (*axes[0, len(at) :], *axes[1, 2:]):
        axis.remove()
    drawn = None
    for axis, patch, row in zip(axes[0], at.tolist(), shares, strict=False):
        place = f"row {patch // grid}, column {patch % grid}"
        seen = canvas.square(row.where(row > 0, torch.nan))
        drawn = canvas.show_map(axis, image, seen, f"{place}: {row[patch]:.0%} stay", gamma=FAINT)
        canvas.outline(axis, patch, grid, side)
    canvas.bar(made, drawn, axes[0, : len(at)].tolist(), "share of draws nearest to a patch")
    _show_spectrum(axes[1, 0], values)
    _show_distances(axes[1, 1], at, shares)
    canvas.save(made, path)


def predictions_picture(
    images: UInt8[Tensor, "b 3 h w"], found: Predicted, draws: int, path: Path
) -> None:
    """By image: how far the mean prediction is from the target, and how the draws spread."""
    zero = float(found.zero.nanmean())
    title = f"Predictions of hidden patches (rms over channels; predicting 0 has {zero:.2f})"
    made, axes = canvas.figure(len(images), 3, 2.7, 2.7, title)
    maps = (("Error of the mean prediction", found.error),
            (f"Spread over {draws} draws", found.spread))  # fmt: skip
    for row, image in enumerate(images):
        canvas.show_image(axes[row, 0], image, "Image")
    for column, (name, values) in enumerate(maps, start=1):
        if values is None:
            for axis in axes[:, column]:
                canvas.say(axis, NO_NOISE)
            continue
        most = _highest(values)
        for axis, image, one in zip(axes[:, column], images, values, strict=True):
            drawn = canvas.show_map(axis, image, canvas.square(one), name, most=most)
        canvas.bar(made, drawn, axes[:, column].tolist(), "rms")
    canvas.save(made, path)


def history_picture(series: Mapping[str, Points], noisy: bool, path: Path) -> None:
    """The numbers of `CURVES` over training; ``noisy``: whether the positions take noise."""
    made, axes = canvas.figure(2, 4, 3.0, 2.4, "Over training")
    for axis, (title, unit, curves) in zip(axes.flat, CURVES, strict=True):
        if not noisy and NOISY.intersection(curves.values()):
            canvas.say(axis, NO_NOISE)
        else:
            points = {name: list(series.get(metric, ())) for name, metric in curves.items()}
            canvas.lines(axis, points, title, unit)
    canvas.save(made, path)


def metric_names() -> list[str]:
    """The metrics that `history_picture` draws."""
    return [metric for _, _, curves in CURVES for metric in curves.values()]


def _highest(values: Tensor) -> float:
    known = values[torch.isfinite(values)]
    return float(known.max()) if len(known) else 1.0


def _show_spectrum(axis: Any, values: NDArray[np.float64]) -> None:
    axis.bar(np.arange(1, len(values) + 1), 100 * values / max(values.sum(), 1e-300), width=1.0)
    axis.set_title(
        f"Spectrum of Σ: effective rank {effective_rank(values):.1f} of {len(values)}",
        fontsize=canvas.SMALL + 1,
    )
    axis.set_xlabel("direction, strongest first", fontsize=canvas.SMALL)
    axis.set_ylabel("share of variance (%)", fontsize=canvas.SMALL)


def _show_distances(axis: Any, at: Int64[Tensor, " n"], shares: Float[Tensor, "n patch"]) -> None:
    far = grid_distances(at, shares.shape[1]).round().long()
    by_distance = torch.zeros(int(far.max()) + 1).index_add_(
        0, far.flatten(), shares.flatten() / len(at)
    )
    axis.bar(range(len(by_distance)), 100 * by_distance.numpy())
    axis.set_title("How far they land, these patches", fontsize=canvas.SMALL + 1)
    axis.set_xlabel("distance to the nearest patch (patches)", fontsize=canvas.SMALL)
    axis.set_ylabel("share of draws (%)", fontsize=canvas.SMALL)
