"""Masks of a step as tensors; the drawing is stoplab_platform.masks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from stoplab_platform import masks
from stoplab_platform.specs import RunSpec


class TensorMasks(NamedTuple):
    """Patch indices of a batch, ascending in each row."""

    context: Int64[Tensor, "b k"]
    targets: Int64[Tensor, "b block n"]


def draw_masks(
    spec: RunSpec, step: int, rows: slice, device: torch.device | str = "cpu"
) -> TensorMasks:
    """The masks of ``rows`` of the global batch at ``step`` (from 0)."""
    drawn = masks.draw(
        spec.masking,
        spec.grid,
        seed=spec.seed,
        step=step,
        batch_size=spec.optim.batch_size,
        rows=rows,
    )
    return TensorMasks(
        torch.from_numpy(drawn.context).to(device, non_blocking=True),
        torch.from_numpy(drawn.targets).to(device, non_blocking=True),
    )
