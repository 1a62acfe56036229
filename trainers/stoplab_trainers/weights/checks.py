"""Whether something exported still computes what the checkpoint does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from stoplab_platform.errors import StoplabError

TOLERANCE = 1e-4
"""Largest difference where other kernels compute in fp32, as a share of the largest feature."""
EXACT = 1e-6
"""The same where both compute in fp64, so that only other weights, or another function, differ."""


class ExportFailed(StoplabError):
    """What was exported does not compute what the checkpoint does."""


@contextmanager
def translated(what: str, *others: type[Exception]) -> Iterator[None]:
    """Whatever exporters and runtimes meet, as ExportFailed in one line.

    Errors of ours stay, and ``others``.
    """
    known: tuple[type[Exception], ...] = (StoplabError, OSError, *others)
    try:
        yield
    except known:
        raise
    except Exception as error:  # torch.export, torch.onnx, onnxruntime: each has its own
        said = next(iter(str(error).strip().splitlines()), "") or "no reason given"
        raise ExportFailed(f"{what}: {type(error).__name__}: {said}") from error


def probe_images(size: int, count: int = 2) -> Float[Tensor, "b 3 h w"]:
    """Images of noise, always the same, to hold two encoders against each other."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def held(one: Tensor, ours: Tensor, what: str, tolerance: float | None = None) -> float:
    """The largest difference from our outputs.

    ExportFailed beyond ``tolerance`` (`TOLERANCE` unless given) times the largest of ours, or where
    those are no numbers.
    """
    if one.shape != ours.shape:
        raise ExportFailed(f"{what}: shape {list(one.shape)}, not {list(ours.shape)}")
    if not ours.isfinite().all():
        raise ExportFailed("the checkpoint's own features are no finite numbers")
    most = TOLERANCE if tolerance is None else tolerance
    difference = float((one - ours).abs().nan_to_num(torch.inf).max())
    size = float(ours.abs().max())
    if difference > most * size:
        raise ExportFailed(
            f"{what}: outputs differ by {difference:.2g} (> {most} of the largest, {size:.2g})"
        )
    return difference
