"""Masks of a run, in NumPy: drawing them, whether they can be drawn, what they leave."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stoplab_platform.mask_blocks import Size, Sizes, block_size, pair_odds, profile, size_odds
from stoplab_platform.mask_official import TorchStream, official_masks, official_sizes, truncated
from stoplab_platform.mask_plugin import OwnMasks
from stoplab_platform.mask_samplers import Drawn, fixed_masks, fixed_sizes, random_masks
from stoplab_platform.randomness import Stream, row_keys

if TYPE_CHECKING:  # specs check themselves with this module
    from stoplab_platform.specs.masking import BlockSpec, MaskingSpec, MultiblockMasking

__all__ = [
    "Masks",
    "block_size",
    "block_sizes",
    "context_tokens",
    "draw",
    "effective_ratio",
    "infeasible",
    "num_blocks",
    "target_tokens",
    "with_ratio",
]

SIZES = 1  # counter of the step-wide draw, beside that of the rows
MIN_ODDS = 0.05  # a context length that fewer images reach is refused
WORST_PAIRS = 8  # pairs of sizes whose contexts a check simulates
RATIO_TOLERANCE = 0.05  # what the sizes' rounding on a coarse grid may cost
END_TOLERANCE = 0.01  # the same beyond the least or the greatest ratio that can be had


@dataclass(frozen=True)
class Masks:
    """Patch indices of a batch, ascending and unique in each row."""

    context: NDArray[np.int64]
    """Kept patches: [row, k]."""
    targets: NDArray[np.int64]
    """Patches to predict: [row, block, n]."""


def block_sizes(block: BlockSpec, grid: int, *, official: bool) -> set[Size]:
    """Every size that ``block`` can take on a grid, found on a fine ladder of draws."""
    return set(size_odds(block, grid, official=official))


def draw(
    masking: MaskingSpec, grid: int, *, seed: int, step: int, batch_size: int, rows: slice
) -> Masks:
    """Masks of ``rows`` of the global batch at ``step`` (from 0): the same on any split.

    Only the context's length with sampler `official` depends on the rows, as published: it is
    the shortest of them. Raises SpecError where bounded retries find no mask.
    """
    index = np.arange(batch_size, dtype=np.int64)[rows]
    keys = row_keys(seed, Stream.MASK, step, rows=index)
    if isinstance(masking, OwnMasks):
        drawn = masking.draw(grid, keys)
    elif masking.kind == "random":
        drawn = random_masks(masking, grid, keys)
    elif masking.sampler == "official":
        drawn = _official(masking, grid, seed, step, index)
    else:
        step_key = row_keys(seed, Stream.MASK, step, SIZES, rows=np.zeros(1, np.int64))
        drawn = fixed_masks(masking, grid, fixed_sizes(masking, grid, step_key), keys)
    return Masks(np.ascontiguousarray(drawn.context), np.ascontiguousarray(drawn.targets))


def effective_ratio(masking: MaskingSpec, grid: int) -> float:
    """Mean share of the grid's patches in at least one target block (fraction, simulated)."""
    if isinstance(masking, OwnMasks):
        covered = [len(np.unique(row)) for row in masking.measured(grid).targets]
        return math.fsum(covered) / len(covered) / grid**2
    if masking.kind == "random":
        return round(masking.ratio * grid * grid) / grid**2
    shares = []
    for sizes, odds in pair_odds(masking, grid).items():
        official = masking.sampler == "official"
        seen = profile(sizes, masking.target.count, grid, official=official)
        shares.append(odds * seen.effective(0 if official else seen.keep(masking)))
    return math.fsum(shares)


def context_tokens(masking: MaskingSpec, grid: int, *, batch_size: int = 1) -> float:
    """Mean context length (patches, simulated).

    ``batch_size`` is the local batch: `official` cuts every context to its shortest.
    """
    if isinstance(masking, OwnMasks):
        return float(masking.measured(grid).context.shape[1])
    if masking.kind == "random":
        return float(grid * grid - round(masking.ratio * grid * grid))
    official = masking.sampler == "official"
    total = 0.0
    for sizes, odds in pair_odds(masking, grid).items():
        seen = profile(sizes, masking.target.count, grid, official=official)
        if official:
            total += odds * _expected_least(seen.lengths, masking.min_keep, batch_size)
        else:
            total += odds * seen.keep(masking)
    return total


def target_tokens(masking: MaskingSpec, grid: int) -> float:
    """Mean size of one target block (patches)."""
    if isinstance(masking, OwnMasks):
        return float(masking.measured(grid).targets.shape[2])
    if masking.kind == "random":
        return float(round(masking.ratio * grid * grid))
    odds = size_odds(masking.target, grid, official=masking.sampler == "official")
    return math.fsum(height * width * share for (height, width), share in odds.items())


def num_blocks(masking: MaskingSpec, grid: int) -> int:
    """Target blocks of an image."""
    if isinstance(masking, OwnMasks):
        return int(masking.measured(grid).targets.shape[1])
    return 1 if masking.kind == "random" else masking.target.count


def with_ratio(masking: MaskingSpec, grid: int, ratio: float) -> MaskingSpec:
    """The masking whose effective ratio is ``ratio``: target.scale is moved as a whole.

    ValueError where no scale comes near enough, or contexts would get too short.
    """
    if isinstance(masking, OwnMasks):
        raise ValueError(f"a masking ratio cannot be set for masking {masking.kind!r}")
    if masking.kind == "random":
        changed = masking.model_copy(update={"ratio": ratio})
        _refuse(changed, grid, ratio)
        return changed
    low, high = 0.0, 1.0 / masking.target.scale[1]
    below: tuple[float, MaskingSpec] = (-math.inf, masking)
    above: tuple[float, MaskingSpec] = (math.inf, masking)
    for _ in range(20):
        middle = (low + high) / 2
        tried = _scaled(masking, middle)
        reached = effective_ratio(tried, grid)
        low, high = (middle, high) if reached < ratio else (low, middle)
        if any(infeasible(tried, grid)):
            continue
        if below[0] < reached <= ratio:
            below = reached, tried
        if ratio <= reached < above[0]:
            above = reached, tried
    # Between two ratios that can be had the nearer one is meant; beyond the last there is none.
    between = math.isfinite(above[0] - below[0])
    reached, best = min(below, above, key=lambda one: abs(one[0] - ratio))
    if abs(reached - ratio) > (RATIO_TOLERANCE if between else END_TOLERANCE):
        _refuse(_scaled(masking, (low + high) / 2), grid, ratio)
        raise ValueError(_unreached(ratio, grid, masking))
    return best


def infeasible(masking: MaskingSpec, grid: int) -> Iterator[tuple[tuple[str, ...], str]]:
    """Why masks cannot be drawn on a ``grid`` x ``grid`` image: field below ``masking``, reason."""
    if isinstance(masking, OwnMasks):
        yield from masking.infeasible(grid)
        return
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
        return
    yield from _short_contexts(masking, grid)


def _official(
    masking: MultiblockMasking, grid: int, seed: int, step: int, index: NDArray[np.int64]
) -> Drawn:
    """Block sizes as published from the step; places from one stream over the global batch."""
    sizes = official_sizes(masking, grid, step)
    start = np.random.SeedSequence([seed, int(Stream.MASK), step]).generate_state(1)[0]
    last = int(index.max()) + 1
    contexts, targets = official_masks(masking, grid, sizes, TorchStream(int(start)), last)
    return truncated([contexts[i] for i in index], targets[index])


def _expected_least(lengths: NDArray[np.int64], min_keep: int, batch_size: int) -> float:
    """The mean of the shortest of ``batch_size`` contexts drawn from the accepted ``lengths``."""
    accepted = lengths[lengths > min_keep]
    count = len(accepted)
    if not count:  # every context ends up on targets, just long enough
        return float(min_keep + 1)
    at_least = (np.arange(count, -1, -1) / count) ** batch_size
    return float(np.dot(accepted, at_least[:-1] - at_least[1:]))


def _scaled(masking: MultiblockMasking, factor: float) -> MultiblockMasking:
    low, high = masking.target.scale
    scale = (min(1.0, low * factor), min(1.0, high * factor))
    target = masking.target.model_copy(update={"scale": scale})
    return masking.model_copy(update={"target": target})


def _refuse(masking: MaskingSpec, grid: int, ratio: float) -> None:
    for path, reason in infeasible(masking, grid):
        raise ValueError(f"masking ratio {ratio} is out of reach: {'.'.join(path)}: {reason}")


def _unreached(ratio: float, grid: int, masking: MultiblockMasking) -> str:
    return (
        f"masking ratio {ratio} is out of reach on a {grid}x{grid} grid with "
        f"{masking.target.count} target blocks and min_keep {masking.min_keep}"
    )


def _short_contexts(masking: MultiblockMasking, grid: int) -> Iterator[tuple[tuple[str, ...], str]]:
    """Refuses sizes whose contexts are too short too often, judged on the worst pairs."""
    if masking.sampler == "official":
        least = min(h * w for h, w in block_sizes(masking.context, grid, official=True))
        if least <= masking.min_keep:
            yield ("min_keep",), _context_reason(masking, grid, least - 1)
        return
    reachable = masking.min_keep
    for sizes in _worst_pairs(masking, grid):
        if _room(sizes, masking) < masking.min_keep:
            lengths = profile(sizes, masking.target.count, grid, official=False).lengths
            reachable = min(reachable, int(np.quantile(lengths, 1 - MIN_ODDS, method="lower")))
    if reachable < masking.min_keep:
        yield ("min_keep",), _context_reason(masking, grid, reachable)


def _worst_pairs(masking: MultiblockMasking, grid: int) -> list[Sizes]:
    """The pairs that leave least: of all there are, those of large targets and small contexts."""
    targets = sorted(block_sizes(masking.target, grid, official=False))
    contexts = sorted(block_sizes(masking.context, grid, official=False))
    targets.sort(key=_area, reverse=True)
    contexts.sort(key=_area)
    ends = product(targets[:WORST_PAIRS], contexts[:WORST_PAIRS])
    pairs = sorted(Sizes(target, context) for target, context in ends)
    return sorted(pairs, key=lambda sizes: _room(sizes, masking))[:WORST_PAIRS]


def _area(size: Size) -> int:
    return size[0] * size[1]


def _room(sizes: Sizes, masking: MultiblockMasking) -> int:
    """Context patches that are left even where no two targets overlap (may be negative)."""
    (height, width), (tall, wide) = sizes
    return tall * wide - masking.target.count * height * width


def _context_reason(masking: MultiblockMasking, grid: int, most: int) -> str:
    reason = f"{masking.min_keep} cannot be met: {masking.target.count} target blocks "
    reason += f"leave contexts of {max(0, most)} patches on a {grid}x{grid} grid; "
    return reason + (
        f"give {most} or less, or a smaller target.scale or target.count"
        if most >= 1
        else "give a smaller target.scale or target.count"
    )
