"""The mask sampler, one NumPy pass a batch, against one of the same law image by image.

python benchmarks/masks.py [--json] [--quick]        seconds of the plain one / seconds of ours

The plain one draws the block sizes once a step as ours does, then goes from image to image as a
collator would: places each block, draws again while too few context patches are left, cuts the rest
at random to the step's length. Lengths must be equal and, on the average over images, places too.

Grid 14 x 14 (224 px, patch 16), 128 images, four targets, seconds of the processor.
"""

from __future__ import annotations

import time

import numpy as np
from harness import Result, arguments, compare, tell
from numpy.typing import NDArray

from stoplab_platform import masks
from stoplab_platform.mask_blocks import Sizes, profile
from stoplab_platform.mask_samplers import fixed_sizes
from stoplab_platform.masks import Masks
from stoplab_platform.randomness import Stream, row_keys
from stoplab_platform.specs.masking import MultiblockMasking

MASKING = MultiblockMasking(kind="multiblock")
GRID, BATCH = 14, 128
ROUNDS, QUICK_ROUNDS = 30, 3
APART = 0.08  # of the shares of images in which a patch is context: the means of some hundred draws


def results(quick: bool) -> list[Result]:
    """The one case."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    found: dict[str, list[Masks]] = {"ours": [], "plain": []}
    profile(_sizes(0), MASKING.target.count, GRID, official=False)  # kept by both

    def ours() -> None:
        found["ours"].append(drawn(len(found["ours"])))

    def plain() -> None:
        found["plain"].append(one_by_one(len(found["plain"])))

    result = compare("masks", plain, ours, rounds, floor=20, aim=50, clock=time.process_time)
    for one, other in zip(found["ours"], found["plain"], strict=True):
        assert one.context.shape == other.context.shape
        assert one.targets.shape == other.targets.shape
    gap = np.abs(_coverage(found["ours"]) - _coverage(found["plain"])).max()
    assert gap < APART * (len(found["ours"]) / ROUNDS) ** -0.5, f"coverages differ by {gap}"
    return [result]


def drawn(step: int) -> Masks:
    """Ours of one step."""
    return masks.draw(MASKING, GRID, seed=0, step=step, batch_size=BATCH, rows=slice(0, BATCH))


def one_by_one(step: int) -> Masks:
    """The plain ones of one step, by another stream of random numbers."""
    rng, sizes = np.random.default_rng(step), _sizes(step)
    keep = profile(sizes, MASKING.target.count, GRID, official=False).keep(MASKING)
    images = [_image(rng, sizes, keep) for _ in range(BATCH)]
    return Masks(*(np.stack(parts) for parts in zip(*images, strict=True)))


def _image(
    rng: np.random.Generator, sizes: Sizes, keep: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Context and targets of one image."""
    while True:
        blocks = [_block(rng, sizes.target) for _ in range(MASKING.target.count)]
        context = _block(rng, sizes.context)
        for block in blocks:
            context &= ~block
        patches = np.flatnonzero(context)
        if len(patches) >= keep:
            break
    kept = np.sort(rng.permutation(patches)[:keep])
    return kept, np.stack([np.flatnonzero(block) for block in blocks])


def _block(rng: np.random.Generator, size: tuple[int, int]) -> NDArray[np.bool_]:
    height, width = size
    top, left = rng.integers(0, GRID - height + 1), rng.integers(0, GRID - width + 1)
    covered = np.zeros((GRID, GRID), dtype=np.bool_)
    covered[top : top + height, left : left + width] = True
    return covered


def _sizes(step: int) -> Sizes:
    key = row_keys(0, Stream.MASK, step, masks.SIZES, rows=np.zeros(1, np.int64))
    return fixed_sizes(MASKING, GRID, key)


def _coverage(found: list[Masks]) -> NDArray[np.float64]:
    """Share of the images in which each patch is context."""
    counts = sum(np.bincount(one.context.ravel(), minlength=GRID**2) for one in found)
    shares: NDArray[np.float64] = counts / (BATCH * len(found))
    return shares


if __name__ == "__main__":
    tell("masks", results(arguments().quick))
