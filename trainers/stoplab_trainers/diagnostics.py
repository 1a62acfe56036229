"""What the noise does to positions, in numbers; what the masks hide, in a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from stoplab_platform.specs import RunSpec
from stoplab_trainers.masking import TensorMasks, draw_masks
from stoplab_trainers.model.jepa import Jepa
from stoplab_trainers.model.positions import position_step

DIMMED = 0.2  # brightness of a patch that is not shown
INCHES = 1.6  # side of one picture


@torch.no_grad()
def position_stats(
    model: Jepa, spec: RunSpec, features: Float[Tensor, "n d"] | None = None
) -> dict[str, float]:
    """How strong the noise is; 0 for positions that take none, but for ||A||.

    - ``stop/a_norm``: Frobenius norm of the context projection A.
    - ``stop/noise_to_signal``: rms of the noise over rms of A s, for ``features`` s (tokens of
      unit variance where none are given), both per channel.
    - ``stop/displacement_patches``: rms length of the noise over the distance in the position
      table between two neighbours; about 1.15 in the published ViT-B at its start.
    """
    predictor = model.predictor
    tied, noise = predictor.embed.weight, predictor.noise
    matrix = noise.matrix(tied)
    gain = tied.shape[0] ** 0.5 if matrix is None else float(matrix.norm())
    length = noise.noise_std * gain
    if features is None:
        signal = float(tied.norm())
    else:
        signal = float((features.float() @ tied.T.float()).square().sum(dim=1).mean().sqrt())
    return {
        "stop/a_norm": float(tied.norm()),
        "stop/noise_to_signal": length / max(signal, 1e-12),
        "stop/displacement_patches": length / position_step(spec.model.predictor.width),
    }


def masks_figure(spec: RunSpec, images: UInt8[Tensor, "n 3 h w"], path: Path) -> None:
    """Writes a PNG: a row an image, with all of it, its context, and each of its targets."""
    images = images[: spec.optim.batch_size]
    masks = draw_masks(spec, 0, slice(0, len(images)))
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
