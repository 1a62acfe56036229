"""Features of a frozen encoder for whole splits, computed once and shared by the protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stoplab_trainers.data.loader import normalise
from stoplab_trainers.evals.splits import Split, Splits

BATCH = 256
PIXEL_SIDE = 32
PATCH_IMAGES = 256  # of a split whose patches are looked at
Features = NDArray[np.float32]
Part = Literal["train", "val", "test"]
On = Literal["val", "test"]
T = TypeVar("T")


@runtime_checkable  # the shape checks of the tests look at instances
class FrozenEncoder(Protocol):
    """What can be judged. Images come normalised, on the encoder's device.

    A torch module is also called itself, for patch features [b, patches, d] (`location`).
    """

    def features(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """One vector an image."""


class Pixels:
    """The images themselves as features: what an encoder has to beat."""

    def features(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """All pixels in a row; larger images are averaged down to 32 a side.

        More would cost a linear probe hours, and tell it little.
        """
        if images.shape[-1] > PIXEL_SIDE:
            images = functional.adaptive_avg_pool2d(images, PIXEL_SIDE)
        return images.flatten(1)


class Bank:
    """What is known of one encoder, as its weights are now: features, and probes fitted on them.

    Everything is made on first use and kept, for all protocols and both judged splits.
    """

    def __init__(self, encoder: FrozenEncoder, splits: Splits) -> None:
        self.encoder, self.splits = encoder, splits
        self._kept: dict[tuple[str, ...], Any] = {}

    def features(self, part: Part) -> Features:
        """One row an image: [n, d]."""

        def make() -> Features:
            return _run(self.encoder, self.encoder.features, self._split(part).batches(BATCH))

        return self.once(("features", part), make)

    def patches(self, part: Part) -> Features | None:
        """Patch features of the first images: [n, patches, d]; None if there are none."""
        if not isinstance(self.encoder, nn.Module):
            return None
        first = next(self._split(part).batches(PATCH_IMAGES))
        return _run(self.encoder, self.encoder, torch.split(first, BATCH))

    def labels(self, part: Part) -> NDArray[np.int64]:
        """Class indices: [n]."""
        return self._split(part).labels

    def once(self, name: tuple[str, ...], make: Callable[[], T]) -> T:
        """What ``make`` gives, made the first time that ``name`` is asked for."""
        if name not in self._kept:
            self._kept[name] = make()
        kept: T = self._kept[name]
        return kept

    def _split(self, part: Part) -> Split:
        split: Split = getattr(self.splits, part)
        return split


def _run(
    encoder: FrozenEncoder,
    call: Callable[[Float[Tensor, "b 3 s s"]], Tensor],
    batches: Iterable[UInt8[Tensor, "b 3 s s"]],
) -> Features:
    device = _device(encoder)
    with _at_rest(encoder):
        rows = [call(normalise(images.to(device))).float().cpu().numpy() for images in batches]
    return np.concatenate(rows)


def _device(encoder: FrozenEncoder) -> torch.device:
    if isinstance(encoder, nn.Module):
        return next(encoder.parameters()).device
    return torch.device("cpu")


@contextmanager
def _at_rest(encoder: FrozenEncoder) -> Iterator[None]:
    """Evaluation mode without gradients; the module's own mode comes back afterwards."""
    training = isinstance(encoder, nn.Module) and encoder.training
    if isinstance(encoder, nn.Module):
        encoder.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if isinstance(encoder, nn.Module):
            encoder.train(training)
