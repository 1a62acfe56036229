"""MAE: the pixels that the student must predict (arXiv 2111.06377; mae:models_mae.py@efb2a80).

The student is the one of I-JEPA: its encoder sees the shown patches, its predictor is the
decoder, with one block of all masked patches and a head onto pixels. A is the decoder's input
projection, so noise on the positions is StoP on MAE, and no shown token gets any.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

PIXEL_EPS = 1e-6  # as published


@torch.no_grad()
def target_pixels(
    images: Float[Tensor, "b 3 h w"],
    targets_index: Int64[Tensor, "b block n"],
    patch_size: int,
    *,
    normalised: bool,
) -> Float[Tensor, "b block n pixel"]:
    """Pixels of the target patches (channel, row, column), fp32.

    ``normalised``: each patch has mean 0 and (unbiased) variance 1.
    """
    batch, grid = len(images), images.shape[-1] // patch_size
    sides = (batch, 3, grid, patch_size, grid, patch_size)
    patches = images.float().reshape(sides).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    row = torch.arange(batch, device=images.device)[:, None, None]
    pixels = patches[row, targets_index]
    if not normalised:
        return pixels
    variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
    return (pixels - mean) / (variance + PIXEL_EPS).sqrt()
