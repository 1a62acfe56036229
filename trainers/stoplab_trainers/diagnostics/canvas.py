"""What the pictures share: figures without pyplot, maps of the patch grid drawn on an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

DPI = 100
SMALL = 8  # points of labels
FEW = 40  # points of a curve that are marked one by one


def figure(rows: int, columns: int, width: float, height: float, title: str) -> tuple[Figure, Any]:
    """A figure and its axes as an array [rows, columns]; sizes of one panel in inches."""
    made = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(made)
    made.suptitle(title, fontsize=SMALL + 3)
    axes = made.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.tick_params(labelsize=SMALL)
    return made, axes


def save(made: Figure, path: Path) -> None:
    """Write a PNG."""
    made.savefig(path, dpi=DPI)


def show_image(axis: Any, image: UInt8[Tensor, "3 h w"], title: str) -> None:
    """The image as it is."""
    axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    axis.set_title(title, fontsize=SMALL + 1)
    axis.set_axis_off()


def show_map(
    axis: Any,
    image: UInt8[Tensor, "3 h w"],
    values: NDArray[np.float64],
    title: str,
    *,
    most: float = 1.0,
    gamma: float = 1.0,
) -> Any:
    """A map [grid, grid] that hides an image in grey but where it is NaN. For a colour bar.

    Colours go from 0 to ``most``; a ``gamma`` below 1 tells small values apart.
    """
    grey = image.float().mean(dim=0).numpy()
    side = image.shape[-1]
    extent = (-0.5, side - 0.5, side - 0.5, -0.5)
    axis.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent)
    drawn = axis.imshow(
        np.ma.masked_invalid(values), cmap="viridis", norm=PowerNorm(gamma, vmin=0, vmax=most),
        interpolation="nearest", extent=extent,
    )  # fmt: skip
    axis.set_title(title, fontsize=SMALL + 1)
    axis.set_axis_off()
    return drawn


def outline(axis: Any, patch: int, grid: int, side: int) -> None:
    """A frame around one patch of an image that is ``side`` pixels wide."""
    row, column = divmod(patch, grid)
    step = side / grid
    corner = (column * step - 0.5, row * step - 0.5)
    axis.add_patch(Rectangle(corner, step, step, fill=False, edgecolor="red", linewidth=1.5))


def bar(made: Figure, drawn: Any, axes: Any, label: str) -> None:
    """A colour bar with what the colours mean."""
    made.colorbar(drawn, ax=axes, shrink=0.8).set_label(label, fontsize=SMALL)


def say(axis: Any, text: str) -> None:
    """Words in place of a picture that does not apply."""
    axis.set_axis_off()
    axis.text(
        0.5, 0.5, text, ha="center", va="center", wrap=True, fontsize=SMALL + 1,
        transform=axis.transAxes,
    )  # fmt: skip


def lines(axis: Any, series: dict[str, list[tuple[int, float]]], title: str, unit: str) -> None:
    """Curves by global step; says so where there is nothing to draw."""
    for name, points in series.items():
        if points:
            steps, values = zip(*points, strict=True)
            marker = "o" if len(points) < FEW else None
            axis.plot(steps, values, label=name, linewidth=1.2, marker=marker, markersize=3)
    axis.set_title(title, fontsize=SMALL + 1)
    if not axis.lines:
        say(axis, "not measured in this run")
        return
    axis.set_xlabel("step", fontsize=SMALL)
    axis.set_ylabel(unit, fontsize=SMALL)
    low, high = axis.get_ylim()
    axis.set_ylim(min(0.0, low), max(0.0, high) + 0.05 * abs(high))
    axis.locator_params(nbins=5)
    axis.grid(alpha=0.3)
    if len(axis.lines) > 1:
        axis.legend(fontsize=SMALL)


def square(values: Float[Tensor, " patch"]) -> NDArray[np.float64]:
    """A map by patch as [grid, grid]."""
    side = round(len(values) ** 0.5)
    return values.double().numpy().reshape(side, side)
