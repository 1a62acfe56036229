"""Features of a frozen encoder for whole splits, computed once and shared by the protocols."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stoplab_platform.specs.base import canonical_digest
from stoplab_trainers.data.loader import normalise
from stoplab_trainers.evals.kept import Features, kept
from stoplab_trainers.evals.splits import Split, Splits
from stoplab_trainers.model.encoder import Encoder

VERSION = 2  # of features: raise it when the same weights and images give others
BATCH = 256
PIXEL_SIDE = 32
PATCH_IMAGES = 256  # of a split whose patches are looked at
DEEP = 4  # last blocks that linear_sgd's wide heads see
Part = Literal["train", "val", "test"]
On = Literal["val", "test"]
T = TypeVar("T")


@runtime_checkable  # the shape checks of the tests look at instances
class FrozenEncoder(Protocol):
    """What can be judged. Images come normalised, on the encoder's device.

    A torch module is also called itself, for patch features [b, patches, d] (`location`). What
    needs to look inside (`linear_sgd`, `finetune`) takes an `Encoder` alone.
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

    Everything is made on first use and kept, for all protocols and both judged splits. With
    ``name``, which must tell weights and architecture, features are kept in the cache as well.
    """

    def __init__(self, encoder: FrozenEncoder, splits: Splits, name: str | None = None) -> None:
        self.encoder, self.splits, self._name = encoder, splits, name
        self._known: dict[tuple[Any, ...], Any] = {}

    @property
    def device(self) -> torch.device:
        """Where the encoder is."""
        return _device(self.encoder)

    @property
    def identity(self) -> str | None:
        """What features and scores may be kept under; None: nothing tells it from others."""
        name = "pixels" if isinstance(self.encoder, Pixels) else self._name
        return name and canonical_digest([VERSION, torch.__version__, self.device.type, name])

    def features(self, part: Part) -> Features:
        """One row an image: [n, d]."""
        batches = self.split(part).batches
        return self._made(part, "features", self.encoder.features, lambda: batches(BATCH))

    def viewed(
        self, part: Part, view: str, change: Callable[[UInt8[Tensor, "b 3 s s"]], Tensor]
    ) -> Features:
        """Features of changed images, ``view`` telling how: [n, d]."""

        def batches() -> Iterator[Tensor]:
            return (change(images) for images in self.split(part).batches(BATCH))

        return self._made(part, f"features of {view}", self.encoder.features, batches)

    def deep(self, part: Part) -> Features | None:
        """Mean tokens of the last blocks, side by side, the last one last: [n, blocks * d]."""
        encoder = self.encoder
        if not isinstance(encoder, Encoder):
            return None
        batches = self.split(part).batches
        return self._made(part, f"last {DEEP}", deep_features(encoder), lambda: batches(BATCH))

    def patches(self, part: Part, block: int | None = None) -> Features | None:
        """Patch features of the first images: [n, patches, d]; None if there are none.

        ``block``: as after so many blocks, for an `Encoder`.
        """
        encoder = self.encoder
        if not isinstance(encoder, nn.Module):
            return None
        call: Callable[[Tensor], Tensor] = encoder
        if block is not None and isinstance(encoder, Encoder):
            call = partial(tokens_after, encoder, block)

        def batches() -> Sequence[Tensor]:
            return torch.split(next(self.split(part).batches(PATCH_IMAGES)), BATCH)

        return self._made(part, f"patches of {PATCH_IMAGES} after {block}", call, batches)

    def labels(self, part: Part) -> NDArray[np.int64]:
        """Class indices: [n]."""
        return self.split(part).labels

    def split(self, part: Part) -> Split:
        """The images of one part."""
        split: Split = getattr(self.splits, part)
        return split

    def once(self, name: tuple[Any, ...], make: Callable[[], T]) -> T:
        """What ``make`` gives, made the first time that ``name`` is asked for."""
        if name not in self._known:
            self._known[name] = make()
        known: T = self._known[name]
        return known

    def _made(
        self,
        part: Part,
        what: str,
        call: Callable[[Tensor], Tensor],
        batches: Callable[[], Iterable[Tensor]],
    ) -> Features:
        def run() -> Features:
            return run_frozen(self.encoder, call, batches())

        def make() -> Features:
            if self._name is None:
                return run()
            digest = canonical_digest([self.identity, what, self.splits.fingerprint, part])
            return kept(self.splits.cache / "features" / f"{digest}.npy", run)

        return self.once((what, part), make)


def deep_features(encoder: Encoder) -> Callable[[Tensor], Tensor]:
    """The call behind `Bank.deep`."""
    return partial(encoder.blocks_features, last=DEEP)


def tokens_after(
    encoder: Encoder, block: int, images: Float[Tensor, "b 3 s s"]
) -> Float[Tensor, "b patches d"]:
    """Tokens after so many blocks (0: the embedding), through the final norm."""
    tokens: Tensor = encoder.vit.norm(encoder.vit.blocks[:block](encoder.embed(images)))
    return tokens


def run_frozen(
    encoder: FrozenEncoder,
    call: Callable[[Float[Tensor, "b 3 s s"]], Tensor],
    batches: Iterable[UInt8[Tensor, "b 3 s s"]],
) -> Features:
    """What ``call`` gives for each image, at rest: one row an image."""
    device = _device(encoder)
    with at_rest(encoder):
        rows = [call(normalise(images.to(device))).float().cpu().numpy() for images in batches]
    return np.concatenate(rows)


def _device(encoder: FrozenEncoder) -> torch.device:
    if isinstance(encoder, nn.Module):
        return next(encoder.parameters()).device
    return torch.device("cpu")


@contextmanager
def at_rest(encoder: FrozenEncoder) -> Iterator[None]:
    """Evaluation mode without gradients; the module's own mode comes back afterwards.

    On a GPU matrices are multiplied in bf16, as in training: fp32 costs several times as much.
    """
    training = isinstance(encoder, nn.Module) and encoder.training
    on_gpu = _device(encoder).type == "cuda"
    if isinstance(encoder, nn.Module):
        encoder.eval()
    try:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
            yield
    finally:
        if isinstance(encoder, nn.Module):
            encoder.train(training)
