"""Whether something exported still computes what the checkpoint does."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from stoplab_platform.errors import StoplabError

TOLERANCE = 1e-4
"""Largest difference of a feature; after the final norm they are around 1."""


class ExportFailed(StoplabError):
    """What was exported does not compute what the checkpoint does."""


def probe_images(size: int, count: int = 2) -> Float[Tensor, "b 3 h w"]:
    """Images of noise, always the same, to hold two encoders against each other."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def held(one: Tensor, other: Tensor, what: str) -> float:
    """The largest difference of two outputs; ExportFailed beyond `TOLERANCE`."""
    if one.shape != other.shape:
        raise ExportFailed(f"{what}: shape {list(one.shape)}, not {list(other.shape)}")
    difference = float((one - other).abs().nan_to_num(torch.inf).max())
    if difference > TOLERANCE:
        raise ExportFailed(f"{what}: outputs differ by {difference:.2g} (> {TOLERANCE})")
    return difference
