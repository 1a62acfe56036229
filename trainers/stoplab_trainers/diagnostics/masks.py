"""What the masks hide, in a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from stoplab_platform.specs import RunSpec
from stoplab_trainers.masking import TensorMasks, draw_masks

DIMMED = 0.2  # brightness of a patch that is not shown
INCHES = 1.6  # side of one picture


def rows_together(spec: RunSpec) -> int:
    """The first rows of a batch whose masks are drawn together.

    The official sampler cuts contexts to the shortest of a worker's share; others take rows alone.
    """
    workers = spec.compute.workers if _is_official(spec) else 1
    return spec.optim.batch_size // workers


def first_masks(
    spec: RunSpec, step: int, count: int, device: torch.device | str = "cpu"
) -> TensorMasks:
    """Masks of the first rows at a step as the run trains with them; at most `rows_together`."""
    rows = rows_together(spec) if _is_official(spec) else count
    drawn = draw_masks(spec, step, slice(0, rows)).to(torch.device(device))
    return TensorMasks(drawn.context[:count], drawn.targets[:count])


def masks_figure(spec: RunSpec, images: UInt8[Tensor, "n 3 h w"], path: Path) -> None:
    """Writes a PNG: a row an image, with all of it, its context, and each of its targets."""
    images = images[: rows_together(spec)]
    masks = first_masks(spec, 0, len(images))
    panels = [_panels(image, masks, row, spec.grid) for row, image in enumerate(images)]
    figure = Figure(figsize=(INCHES * len(panels[0]), INCHES * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), len(panels[0]), squeeze=False)
    for across, name in enumerate(_titles(masks)):
        axes[0, across].set_title(name, fontsize=9)
    for down, row in enumerate(panels):
        for across, pixels in enumerate(row):
            axes[down, across].imshow(pixels, interpolation="nearest")
            axes[down, across].set_axis_off()
    figure.savefig(path, dpi=100)


def _is_official(spec: RunSpec) -> bool:
    return getattr(spec.masking, "sampler", "fixed") == "official"


def _titles(masks: TensorMasks) -> list[str]:
    _, num_blocks, num_target = masks.targets.shape
    targets = [f"target {block + 1} ({num_target})" for block in range(num_blocks)]
    return ["image", f"context ({masks.context.shape[1]})", *targets]


def _panels(
    image: UInt8[Tensor, "3 h w"], masks: TensorMasks, row: int, grid: int
) -> list[NDArray[np.uint8]]:
    shown = [torch.arange(grid * grid), masks.context[row], *masks.targets[row]]
    side = image.shape[1] // grid
    return [_dimmed(image, _lit(index, grid, side)) for index in shown]


def _lit(index: Tensor, grid: int, side: int) -> Bool[Tensor, "h w"]:
    """Pixels of the patches in ``index``."""
    lit = torch.zeros(grid * grid, dtype=torch.bool)
    lit[index] = True
    square = lit.reshape(grid, grid)
    return square.repeat_interleave(side, dim=0).repeat_interleave(side, dim=1)


def _dimmed(image: UInt8[Tensor, "3 h w"], lit: Bool[Tensor, "h w"]) -> NDArray[np.uint8]:
    pixels = image.permute(1, 2, 0).numpy()
    dark = (pixels * DIMMED).astype(np.uint8)
    return np.where(lit.numpy()[..., None], pixels, dark)
