"""The published sampler: its numbers, its loop, its flaws, and its end."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stoplab_platform import masks
from stoplab_platform.errors import SpecError
from stoplab_platform.mask_blocks import Sizes
from stoplab_platform.mask_official import (
    TorchStream,
    official_masks,
    official_sizes,
    truncated,
)
from stoplab_platform.specs.masking import (
    BlockSpec,
    MultiblockMasking,
)
from support_masks import PUBLISHED, draw, multiblocks


class TestOfficial:
    def test_published_numbers(self) -> None:
        """METHOD 4.2: collator seed 0, 224/16, four images, three batches."""
        stream = TorchStream(0)
        found = []
        for counter in range(3):
            sizes = official_sizes(PUBLISHED, 14, counter)
            drawn = truncated(*official_masks(PUBLISHED, 14, sizes, stream, 4))
            shape = (drawn.context.shape[1], drawn.targets.shape[2])
            found.append((shape, int(drawn.context.sum()), drawn.targets.sum(axis=(0, 2)).tolist()))
        assert found == [
            ((59, 36), 17504, [14184, 15444, 11772, 13140]),
            ((74, 35), 24710, [12915, 11900, 13720, 11830]),
            ((70, 35), 22353, [11830, 12005, 14175, 10850]),
        ]

    def test_published_block_sizes(self) -> None:
        sizes = [official_sizes(PUBLISHED, 14, seed) for seed in range(6)]
        targets = [(6, 6), (7, 5), (7, 5), (5, 6), (6, 5), (7, 5)]
        assert sizes == [Sizes(target, (13, 13)) for target in targets]

    @settings(max_examples=30, deadline=None)
    @given(multiblocks("official"), st.integers(0, 2**32 - 1))
    def test_the_batched_pass_equals_the_loop(
        self, drawn: tuple[MultiblockMasking, int], seed: int
    ) -> None:
        masking, grid = drawn
        assume(not any(masks.infeasible(masking, grid)))
        sizes = official_sizes(masking, grid, 0)
        contexts, targets = official_masks(masking, grid, sizes, TorchStream(seed), 140)
        source = Words(seed)
        for context, blocks in zip(contexts, targets, strict=True):
            expected_context, expected_blocks = plain_image(masking, grid, sizes, source)
            assert context.tolist() == expected_context
            assert blocks.tolist() == expected_blocks

    @pytest.mark.invariant(12)
    def test_the_last_row_and_column_are_never_drawn(self) -> None:
        """Its known flaw (ijepa pull request 40), kept; `fixed` has none."""
        found = [draw(PUBLISHED, 14, step, 64) for step in range(10)]
        seen = np.concatenate([f.targets.ravel() for f in found])
        assert (seen // 14).max() == (seen % 14).max() == 12

    def test_contexts_are_cut_to_the_shortest_of_the_rows_at_hand(self) -> None:
        whole = draw(PUBLISHED, 14, 0, 64)
        parts = [draw(PUBLISHED, 14, 0, 64, rows=slice(r, r + 1)) for r in range(64)]
        assert whole.context.shape[1] == min(part.context.shape[1] for part in parts)
        assert len({part.context.shape[1] for part in parts}) > 1

    @pytest.mark.invariant(11)
    def test_a_context_without_room_lies_on_targets(self) -> None:
        """The published way out, bounded: it ignores one target after the other."""
        crowded = MultiblockMasking(
            kind="multiblock",
            sampler="official",
            target=BlockSpec(count=4, scale=(0.7, 0.8)),
            min_keep=20,
        )
        found = draw(crowded, 8)
        assert found.context.shape[1] > 20
        assert any(
            np.intersect1d(c, t).size for c, t in zip(found.context, found.targets, strict=True)
        )

    @pytest.mark.invariant(13)
    def test_blocks_that_it_would_seek_for_ever_are_refused(self) -> None:
        small = PUBLISHED.model_copy(update={"min_keep": 4})
        assert any(masks.infeasible(small, 4))
        with pytest.raises(SpecError, match="must be less than"):
            draw(small, 4)


class Words:
    """The raw words of NumPy's Mersenne Twister, one at a time."""

    def __init__(self, seed: int) -> None:
        self.source = np.random.RandomState(seed)

    def below(self, bound: int) -> int:
        return int(self.source.randint(0, 2**32, dtype=np.uint32)) % bound


def plain_image(
    masking: MultiblockMasking, grid: int, sizes: Sizes, words: Words
) -> tuple[list[int], list[list[int]]]:
    """One image of the published sampler, patch by patch (METHOD 2.1)."""

    def block(size: tuple[int, int]) -> set[int]:
        top, left = words.below(grid - size[0]), words.below(grid - size[1])
        return {
            r * grid + c for r in range(top, top + size[0]) for c in range(left, left + size[1])
        }

    targets = [block(sizes.target) for _ in range(masking.target.count)]
    respected, failures = len(targets), 0
    while True:
        context = block(sizes.context).difference(*targets[:respected])
        if len(context) > masking.min_keep:
            return sorted(context), [sorted(target) for target in targets]
        failures += 1
        if failures % 20 == 0:
            respected -= 1
