"""Masks of a step as tensors; the drawing is stoplab_platform.masks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int64
from torch import Tensor

from stoplab_platform import masks
from stoplab_platform.specs import RunSpec
from stoplab_trainers.hardware import sent


class TensorMasks(NamedTuple):
    """Patch indices of a batch, ascending in each row."""

    context: Int64[Tensor, "b k"]
    targets: Int64[Tensor, "b block n"]

    def rows(self, rows: slice) -> TensorMasks:
        """Those of some images."""
        return TensorMasks(self.context[rows], self.targets[rows])

    def to(self, device: torch.device) -> TensorMasks:
        """The same on a device."""
        return TensorMasks(*(sent(index, device) for index in self))


def draw_masks(spec: RunSpec, step: int, rows: slice) -> TensorMasks:
    """The masks of ``rows`` of the global batch at ``step`` (from 0), on the CPU."""
    drawn = masks.draw(
        spec.masking,
        spec.grid,
        seed=spec.seed,
        step=step,
        batch_size=spec.optim.batch_size,
        rows=rows,
    )
    return TensorMasks(torch.from_numpy(drawn.context), torch.from_numpy(drawn.targets))
