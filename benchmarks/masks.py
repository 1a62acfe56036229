"""The mask sampler, one NumPy pass a batch, against one of the same law image by image.

python benchmarks/masks.py [--json] [--quick]        seconds of the plain one / seconds of ours

The plain one works as the published collator does, on tensors of one image at a time:

- the block sizes are drawn once a step, here by our own code, so that lengths agree;
- each block: a corner by two `torch.randint`, whose tensors bound the slices as they do there; a
  grid of zeros filled with ones, its complement, the indices of its patches by `nonzero`;
- the context: the same, times the complement of each target, again while too few patches are left;
- what is left over of a context is cut at random; all is stacked at the end.

Lengths must be equal and, on the average over images, places too. What a pair of block sizes leaves
for the context is simulated beforehand: a run does it once for each pair, which is soon over.

Grid 14 x 14 (224 px, patch 16), 128 images, four targets, four steps a round, seconds of the
processor.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from harness import Result, arguments, compare, tell
from numpy.typing import NDArray
from torch import Tensor

from stoplab_platform import masks
from stoplab_platform.mask_blocks import Sizes, profile
from stoplab_platform.mask_samplers import fixed_sizes
from stoplab_platform.masks import Masks
from stoplab_platform.randomness import Stream, row_keys
from stoplab_platform.specs.masking import MultiblockMasking

MASKING = MultiblockMasking(kind="multiblock")
GRID, BATCH = 14, 128
STEPS = 4  # a round
ROUNDS, QUICK_ROUNDS = 20, 3
APART = 0.08  # of the shares of images in which a patch is context: the means of some hundred draws


def results(quick: bool) -> list[Result]:
    """The one case."""
    torch.set_num_threads(1)
    rounds = QUICK_ROUNDS if quick else ROUNDS
    found: dict[str, list[Masks]] = {"ours": [], "plain": []}
    for step in range(STEPS * (rounds + 1)):
        profile(_sizes(step), MASKING.target.count, GRID, official=False)  # kept, for both

    def ours() -> None:
        for _ in range(STEPS):
            found["ours"].append(drawn(len(found["ours"])))

    def plain() -> None:
        for _ in range(STEPS):
            found["plain"].append(one_by_one(len(found["plain"])))

    result = compare("masks", plain, ours, rounds, floor=20, aim=50, clock=time.process_time)
    for one, other in zip(found["ours"], found["plain"], strict=True):
        assert one.context.shape == other.context.shape
        assert one.targets.shape == other.targets.shape
    gap = np.abs(_coverage(found["ours"]) - _coverage(found["plain"])).max()
    assert gap < APART * (len(found["ours"]) / 30) ** -0.5, f"coverages differ by {gap}"
    return [result]


def drawn(step: int) -> Masks:
    """Ours of one step."""
    return masks.draw(MASKING, GRID, seed=0, step=step, batch_size=BATCH, rows=slice(0, BATCH))


def one_by_one(step: int) -> Masks:
    """The plain ones of one step, by another stream of random numbers."""
    rng, sizes = torch.Generator().manual_seed(step), _sizes(step)
    keep = profile(sizes, MASKING.target.count, GRID, official=False).keep(MASKING)
    images = [_image(rng, sizes, keep) for _ in range(BATCH)]
    contexts, targets = zip(*images, strict=True)
    return Masks(torch.stack(contexts).numpy(), torch.stack(targets).numpy())


def _image(rng: torch.Generator, sizes: Sizes, keep: int) -> tuple[Tensor, Tensor]:
    """Context and targets of one image."""
    while True:
        blocks = [_block(rng, sizes.target) for _ in range(MASKING.target.count)]
        covered, _ = _block(rng, sizes.context)
        for _, complement in blocks:
            covered = covered * complement
        context = torch.nonzero(covered.flatten()).squeeze(1)
        if len(context) >= keep:
            break
    kept = context[torch.randperm(len(context), generator=rng)[:keep]].sort().values
    targets = [torch.nonzero(block.flatten()).squeeze(1) for block, _ in blocks]
    return kept, torch.stack(targets)


def _block(rng: torch.Generator, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """A block on the grid, and the rest of the grid."""
    height, width = size
    top = torch.randint(0, GRID - height + 1, (1,), generator=rng)
    left = torch.randint(0, GRID - width + 1, (1,), generator=rng)
    covered = torch.zeros((GRID, GRID), dtype=torch.int32)
    covered[top : top + height, left : left + width] = 1
    complement = torch.ones((GRID, GRID), dtype=torch.int32)
    complement[top : top + height, left : left + width] = 0
    return covered, complement


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
