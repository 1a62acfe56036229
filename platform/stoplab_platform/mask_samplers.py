"""The `fixed` multi-block sampler and random masking: one NumPy pass a batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stoplab_platform.errors import Problem, SpecError
from stoplab_platform.mask_blocks import (
    LADDER,
    Ints,
    Placed,
    Sizes,
    block_size,
    num_patches,
    patches,
    place,
    profile,
    unpacked,
)
from stoplab_platform.randomness import Keys, bits, uniforms

if TYPE_CHECKING:
    from stoplab_platform.specs.masking import BlockSpec, MultiblockMasking, RandomMasking

ATTEMPTS = 1000  # per image; at 5 % odds the chance of needing more is 5e-23
LAST = np.uint64(2**64 - 1)  # the rank behind every patch that may be kept
CUT = 1 << 32  # where a row's draws for the cut start, past those of all attempts


class Drawn(NamedTuple):
    """Patch indices, ascending in each row."""

    context: Ints  # [row, k]
    targets: Ints  # [row, block, n]


def fixed_sizes(masking: MultiblockMasking, grid: int, step_key: Keys) -> Sizes:
    """The step's block sizes, from one key [1]."""

    def size(u: float, block: BlockSpec) -> tuple[int, int]:
        return block_size(int(u * LADDER) / LADDER, block, grid, official=False)

    u, v = uniforms(step_key, 2)[0]
    return Sizes(size(u, masking.target), size(v, masking.context))


def fixed_masks(masking: MultiblockMasking, grid: int, sizes: Sizes, keys: Keys) -> Drawn:
    """Masks of rows with ``keys``: contexts of one length, never on a target.

    The length follows from the sizes alone. Images that leave less are drawn again; what is
    left over is cut at random.
    """
    count = masking.target.count
    keep = profile(sizes, count, grid, official=False).keep(masking)
    placed = _place_all(masking, grid, sizes, keys, keep)
    allowed = unpacked(placed.allowed, grid)
    ranks = np.where(allowed, bits(keys, grid * grid, offset=CUT), LAST)
    return Drawn(_smallest(ranks, keep), patches(placed.top, placed.left, sizes.target, grid))


def random_masks(masking: RandomMasking, grid: int, keys: Keys) -> Drawn:
    """Uniformly drawn targets as one block; all other patches are the context."""
    order = np.argsort(uniforms(keys, grid * grid), axis=1)
    masked = round(masking.ratio * grid * grid)
    context, targets = order[:, masked:], order[:, :masked]
    return Drawn(np.sort(context, axis=1), np.sort(targets, axis=1)[:, None])


def _place_all(
    masking: MultiblockMasking, grid: int, sizes: Sizes, keys: Keys, keep: int
) -> Placed:
    count = 2 * (masking.target.count + 1)
    placed = place(uniforms(keys, count), sizes, grid)
    pending = _short(placed, keep)
    for attempt in range(1, ATTEMPTS):
        if not len(pending):
            return placed
        again = place(uniforms(keys[pending], count, offset=attempt * count), sizes, grid)
        pairs: Iterable[tuple[NDArray[Any], NDArray[Any]]] = zip(placed, again, strict=True)
        for whole, part in pairs:
            whole[pending] = part
        pending = pending[_short(again, keep)]
    message = (
        f"{keep} context patches are out of reach on a {grid}x{grid} grid with target blocks of "
        f"{sizes.target[0]}x{sizes.target[1]}; lower min_keep, target.scale or target.count"
    )
    raise SpecError([Problem(("masking", "min_keep"), message, (("masking", "target"),))])


def _short(placed: Placed, keep: int) -> Ints:
    return np.flatnonzero(num_patches(placed.allowed) < keep)


def _smallest(ranks: Keys, keep: int) -> Ints:
    """Indices of the ``keep`` smallest of each row, ascending; no two of those are equal."""
    greatest = np.partition(ranks, keep - 1, axis=1)[:, keep - 1, None]
    rows, columns = ranks.shape
    chosen = np.flatnonzero(ranks <= greatest).reshape(rows, keep)
    chosen -= np.arange(rows)[:, None] * columns
    return chosen
