"""The published multi-block sampler, bit for bit (METHOD: ijepa:src/masks/multiblock.py@52c1ae9).

Torch's CPU generator is MT19937: ``torch.rand`` gives (word & 0xffffff) / 2^24 and
``torch.randint(0, n)`` gives word % n. The platform has no torch, so it reads the words from
NumPy's MT19937. Images are drawn in one pass on the guess that none is rejected; the first
rejected one is drawn alone, as published, and the pass goes on behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stoplab_platform.errors import Problem, SpecError
from stoplab_platform.mask_blocks import Bools, Ints, Sizes, block_size, cover, patches
from stoplab_platform.mask_samplers import Drawn

if TYPE_CHECKING:
    from stoplab_platform.specs.masking import MultiblockMasking

PASS = 128  # images of one optimistic pass
PATIENCE = 20  # rejected contexts before one more target block is ignored


class TorchStream:
    """The words of ``torch.Generator().manual_seed(seed)``, read ahead without being used up."""

    def __init__(self, seed: int) -> None:
        self._source = np.random.RandomState(seed)
        self._ahead = np.empty(0, np.int64)

    def peek(self, count: int) -> Ints:
        """The next ``count`` words."""
        lacking = count - len(self._ahead)
        if lacking > 0:
            fresh = self._source.randint(0, 2**32, size=lacking, dtype=np.uint32)
            self._ahead = np.concatenate([self._ahead, fresh.astype(np.int64)])
        return self._ahead[:count]

    def skip(self, count: int) -> None:
        """Uses up ``count`` words."""
        self._ahead = self._ahead[count:]

    def uniform(self) -> float:
        """One ``torch.rand`` in single precision."""
        word = int(self.peek(1)[0])
        self.skip(1)
        return (word & 0xFFFFFF) / 2**24


def official_sizes(masking: MultiblockMasking, grid: int, counter: int) -> Sizes:
    """Block sizes of the batch with this number (from 0), the same on every rank."""
    stream = TorchStream(counter)
    target = block_size(stream.uniform(), masking.target, grid, official=True)
    context = block_size(stream.uniform(), masking.context, grid, official=True)
    _check(masking, grid, Sizes(target, context))
    return Sizes(target, context)


def official_masks(
    masking: MultiblockMasking, grid: int, sizes: Sizes, stream: TorchStream, num_images: int
) -> tuple[list[Ints], Ints]:
    """Contexts, one array an image, and targets [image, block, n], read from ``stream``.

    A context that finds no free place lies on targets in the end, as published.
    """
    contexts: list[Ints] = []
    targets: list[Ints] = []
    while len(contexts) < num_images:
        count = min(PASS, num_images - len(contexts))
        drawn, allowed = _optimistic(masking, grid, sizes, stream, count)
        contexts += [np.flatnonzero(image) for image in allowed]
        targets.append(drawn)
        if len(allowed) < count:
            drawn, context = _one_by_one(masking, grid, sizes, stream)
            contexts.append(context)
            targets.append(drawn)
    return contexts, np.concatenate(targets)


def truncated(contexts: list[Ints], targets: Ints) -> Drawn:
    """Contexts cut to the shortest by their first patches, which starves the bottom rows."""
    shortest = min(len(context) for context in contexts)
    return Drawn(np.stack([context[:shortest] for context in contexts]), targets)


def _check(masking: MultiblockMasking, grid: int, sizes: Sizes) -> None:
    """The published code would look for ever for a block of ``min_keep`` patches or less."""
    for name, (height, width) in zip(("target", "context"), sizes, strict=True):
        if height * width <= masking.min_keep:
            message = (
                f"{masking.min_keep} must be less than the patches of a {name} block, which has "
                f"{height}x{width} on a {grid}x{grid} grid"
            )
            raise SpecError([Problem(("masking", "min_keep"), message)])


def _optimistic(
    masking: MultiblockMasking, grid: int, sizes: Sizes, stream: TorchStream, count: int
) -> tuple[Ints, Bools]:
    """Targets and contexts of the next images, up to the first that is rejected."""
    per_image = 2 * (masking.target.count + 1)
    words = stream.peek(count * per_image).reshape(count, per_image)
    top, left = _corners(words[:, :-2], sizes.target, grid)
    hit = cover(top, left, sizes.target, grid).any(axis=1)
    outer = cover(*_corners(words[:, -2:], sizes.context, grid), sizes.context, grid)[:, 0]
    allowed = (outer & ~hit).reshape(count, -1)
    rejected = np.flatnonzero(allowed.sum(axis=1) <= masking.min_keep)
    good = int(rejected[0]) if len(rejected) else count
    stream.skip(good * per_image)
    return patches(top[:good], left[:good], sizes.target, grid), allowed[:good]


def _one_by_one(
    masking: MultiblockMasking, grid: int, sizes: Sizes, stream: TorchStream
) -> tuple[Ints, Ints]:
    """One image as the published loop draws it: targets [1, block, n] and its context."""
    count = masking.target.count
    top, left = _corners(_take(stream, 2 * count)[None], sizes.target, grid)
    blocks = cover(top, left, sizes.target, grid)[0]
    for ignored in range(count + 1):
        hit = blocks[: count - ignored].any(axis=0)
        for _ in range(PATIENCE):
            corner = _corners(_take(stream, 2)[None], sizes.context, grid)
            context = np.flatnonzero(cover(*corner, sizes.context, grid)[0, 0] & ~hit)
            if len(context) > masking.min_keep:
                return patches(top, left, sizes.target, grid), context
    raise AssertionError("a context block larger than min_keep fits once all targets are ignored")


def _corners(words: Ints, size: tuple[int, int], grid: int) -> tuple[Ints, Ints]:
    """Corners from words [image, 2 * block]; the published range leaves the last line out."""
    return words[:, ::2] % (grid - size[0]), words[:, 1::2] % (grid - size[1])


def _take(stream: TorchStream, count: int) -> NDArray[np.int64]:
    words = stream.peek(count).copy()
    stream.skip(count)
    return words
