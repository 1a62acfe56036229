"""Features of a frozen encoder for whole splits, computed once and shared by the protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from stoplab_trainers.data.loader import normalise
from stoplab_trainers.evals.splits import Split, Splits

BATCH = 256
Features = NDArray[np.float32]
Part = Literal["train", "val", "test"]
On = Literal["val", "test"]


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
        """All pixels in a row."""
        return images.flatten(1)


class Bank:
    """One encoder's features of the splits, made on first use, and the labels beside them."""

    def __init__(self, encoder: FrozenEncoder, splits: Splits) -> None:
        self._encoder, self._splits = encoder, splits
        self._features: dict[Part, Features] = {}

    def features(self, part: Part) -> Features:
        """One row an image: [n, d]."""
        if part not in self._features:
            batches = self._split(part).batches(BATCH)
            self._features[part] = _run(self._encoder, self._encoder.features, batches)
        return self._features[part]

    def labels(self, part: Part) -> NDArray[np.int64]:
        """Class indices: [n]."""
        return self._split(part).labels

    def patches(self, part: Part, images: int) -> Features | None:
        """Patch features of the first ``images``: [n, patches, d]; None if there are none."""
        if not isinstance(self._encoder, nn.Module):
            return None
        first = next(self._split(part).batches(images))
        return _run(self._encoder, self._encoder, torch.split(first, BATCH))

    def _split(self, part: Part) -> Split:
        split: Split = getattr(self._splits, part)
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
