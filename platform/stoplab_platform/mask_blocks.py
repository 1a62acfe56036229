"""Rectangles on the patch grid, and what their sizes leave for the context."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stoplab_platform.randomness import Keys, Stream, row_keys, uniforms

if TYPE_CHECKING:  # specs check themselves with this module
    from stoplab_platform.specs.masking import BlockSpec, MultiblockMasking

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Packed = NDArray[np.uint8]
Size = tuple[int, int]

LADDER = 4096  # sizes are drawn on this many steps of u, so that each can be checked beforehand
SIMULATED = 1024  # images of a simulation


def block_size(u: float, block: BlockSpec, grid: int, *, official: bool) -> Size:
    """Height and width (patches) of a block at the uniform draw ``u``.

    One draw sets both scale and aspect. The published code lowers both sides below the grid's
    (ijepa:src/masks/multiblock.py@52c1ae9); ours lets a block span the grid.
    """
    (s0, s1), (a0, a1) = block.scale, block.aspect
    area = int(grid * grid * (s0 + u * (s1 - s0)))
    aspect = a0 + u * (a1 - a0)
    most = grid - 1 if official else grid
    height = round(min(math.sqrt(area * aspect), most))  # before a root too large for any integer
    width = round(min(math.sqrt(area / aspect), most))
    return height, width


@lru_cache(maxsize=1024)
def size_odds(block: BlockSpec, grid: int, *, official: bool) -> dict[Size, float]:
    """Every size that ``block`` can take on a grid, with its probability."""
    ladder = (block_size(i / LADDER, block, grid, official=official) for i in range(LADDER))
    return {size: times / LADDER for size, times in sorted(Counter(ladder).items())}


class Sizes(NamedTuple):
    """Block sizes of one step (patches)."""

    target: Size
    context: Size


def pair_odds(masking: MultiblockMasking, grid: int) -> dict[Sizes, float]:
    """Every pair of sizes that a step can draw, with its probability."""
    official = masking.sampler == "official"
    targets = size_odds(masking.target, grid, official=official)
    contexts = size_odds(masking.context, grid, official=official)
    return {Sizes(t, c): p * q for t, p in targets.items() for c, q in contexts.items()}


def cover(top: Ints, left: Ints, size: Size, grid: int) -> Bools:
    """Which patches blocks cover: [*block, grid, grid] from corners [*block]."""
    ticks = np.arange(grid)
    down = (ticks >= top[..., None]) & (ticks < top[..., None] + size[0])
    across = (ticks >= left[..., None]) & (ticks < left[..., None] + size[1])
    covered: Bools = down[..., :, None] & across[..., None, :]
    return covered


def patches(top: Ints, left: Ints, size: Size, grid: int) -> Ints:
    """Indices of the patches of blocks, ascending: [*block, height * width]."""
    within = (np.arange(size[0])[:, None] * grid + np.arange(size[1])).ravel()
    indices: Ints = (top * grid + left)[..., None] + within
    return indices


class Placed(NamedTuple):
    """Blocks of some images; patches are bits, eight of a column in a byte."""

    top: Ints  # of the targets [row, block]
    left: Ints  # likewise
    hit: Packed  # patches in a target block [row, n, grid]
    allowed: Packed  # patches of the context block in no target [row, n, grid]


def place(draws: NDArray[np.float64], sizes: Sizes, grid: int, *, reach: int = 1) -> Placed:
    """Blocks from uniforms [row, 2 * (blocks + 1)]: corners of the targets, then the context's.

    ``reach`` 1 lets a block touch the last row and column; the published code has 0.
    """
    (height, width), (tall, wide) = sizes
    top = _corners(draws[:, :-2:2], height, grid, reach)
    left = _corners(draws[:, 1:-2:2], width, grid, reach)
    hit: Packed = np.bitwise_or.reduce(_packed_cover(top, left, sizes.target, grid), axis=1)
    down = _corners(draws[:, -2], tall, grid, reach)
    across = _corners(draws[:, -1], wide, grid, reach)
    return Placed(top, left, hit, _packed_cover(down, across, sizes.context, grid) & ~hit)


def unpacked(covered: Packed, grid: int) -> Bools:
    """Bits as truth values: [row, grid * grid]."""
    return np.unpackbits(covered, axis=1, count=grid).reshape(len(covered), -1).view(np.bool_)


def num_patches(covered: Packed) -> Ints:
    """Patches that are covered, of each image."""
    counts: Ints = np.bitwise_count(covered).sum(axis=(1, 2), dtype=np.int64)
    return counts


@dataclass(frozen=True)
class Profile:
    """What a pair of sizes gives, over many simulated images.

    Attributes:
        lengths: context patches outside of the targets, rising.
        shares: for each, the image's share of patches in at least one target (fraction).
    """

    lengths: Ints
    shares: NDArray[np.float64]

    def keep(self, masking: MultiblockMasking) -> int:
        """Context patches that the `fixed` sampler keeps at these sizes."""
        quantile = np.quantile(self.lengths, masking.context_quantile, method="lower")
        return max(masking.min_keep, int(quantile))

    def odds(self, keep: int) -> float:
        """Share of the images that leave ``keep`` context patches or more (fraction)."""
        return float(np.mean(self.lengths >= keep))

    def effective(self, keep: int) -> float:
        """Mean share of an image's patches in a target, where ``keep`` are left (fraction)."""
        fits = self.lengths >= keep
        return float(self.shares[fits].mean()) if fits.any() else math.nan


@lru_cache(maxsize=4096)
def profile(sizes: Sizes, count: int, grid: int, *, official: bool) -> Profile:
    """The profile of ``count`` targets and a context of these sizes; always the same images."""
    draws = uniforms(_simulation_keys(), 2 * (count + 1))
    placed = place(draws, sizes, grid, reach=0 if official else 1)
    lengths = num_patches(placed.allowed)
    order = np.argsort(lengths, kind="stable")
    return Profile(lengths[order], num_patches(placed.hit)[order] / grid**2)


def _packed_cover(top: Ints, left: Ints, size: Size, grid: int) -> Packed:
    """What `cover` tells, packed: [*block, n, grid]. Of a large grid it is gigabytes otherwise."""
    lines, _ = _packed_strips(size[0], grid)
    _, columns = _packed_strips(size[1], grid)
    covered: Packed = lines[top][..., None] & columns[left][..., None, :]
    return covered


@lru_cache(maxsize=1024)
def _packed_strips(side: int, grid: int) -> tuple[Packed, Packed]:
    """`_strips` as bits, and as bytes of which all bits are set or none."""
    strips = _strips(side, grid)
    return np.packbits(strips, axis=1), np.where(strips, 0xFF, 0).astype(np.uint8)


def _strips(side: int, grid: int) -> Bools:
    """Which lines a block covers that begins at the first, …, or behind the last: [start, line]."""
    ticks, starts = np.arange(grid), np.arange(grid + 1)[:, None]
    strips: Bools = (ticks >= starts) & (ticks < starts + side)
    return strips


def _corners(draws: NDArray[np.float64], side: int, grid: int, reach: int) -> Ints:
    return (draws * (grid - side + reach)).astype(np.int64)


def _simulation_keys() -> Keys:
    return row_keys(0, Stream.MASK, LADDER, rows=np.arange(SIMULATED))
