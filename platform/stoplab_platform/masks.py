"""Geometry of the masks, in NumPy: block sizes, feasibility, effective masked fraction."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # specs check themselves with this module
    from stoplab_platform.specs.masking import BlockSpec, MaskingSpec


def block_size(u: float, block: BlockSpec, grid: int, *, official: bool) -> tuple[int, int]:
    """Height and width (patches) of a block at the uniform draw ``u``.

    One draw sets both scale and aspect. The published code lowers both sides below the grid's
    (ijepa:src/masks/multiblock.py@52c1ae9); ours lets a block span the grid.
    """
    (s0, s1), (a0, a1) = block.scale, block.aspect
    area = int(grid * grid * (s0 + u * (s1 - s0)))
    aspect = a0 + u * (a1 - a0)
    most = grid - 1 if official else grid
    height = min(round(math.sqrt(area * aspect)), most)
    width = min(round(math.sqrt(area / aspect)), most)
    return height, width


def block_sizes(block: BlockSpec, grid: int, *, official: bool) -> set[tuple[int, int]]:
    """Every size that ``block`` can take on a grid, found on a fine ladder of draws."""
    ladder = 4096
    return {block_size(i / ladder, block, grid, official=official) for i in range(ladder)}


def infeasible(masking: MaskingSpec, grid: int) -> Iterator[tuple[tuple[str, ...], str]]:
    """Why masks cannot be drawn on a ``grid`` x ``grid`` image: field below ``masking``, reason."""
    if masking.kind == "random":
        masked = round(masking.ratio * grid * grid)
        if not 0 < masked < grid * grid:
            yield ("ratio",), f"{masking.ratio} leaves no context or no target on {grid}x{grid}"
        return
    official = masking.sampler == "official"
    smallest = min(h * w for h, w in block_sizes(masking.target, grid, official=official))
    need = masking.min_keep + 1 if official else masking.min_keep
    if smallest < need:
        yield (
            ("min_keep",),
            f"{masking.min_keep} cannot be met: target blocks on a {grid}x{grid} grid can have "
            f"{smallest} patches; give {max(0, smallest - (1 if official else 0))} or less, or a "
            "larger target.scale",
        )
