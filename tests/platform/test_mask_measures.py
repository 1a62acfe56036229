"""What masks leave: effective ratio, context length, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stoplab_platform import masks
from stoplab_platform.errors import SpecError
from stoplab_platform.mask_blocks import block_size
from stoplab_platform.specs.masking import (
    BlockSpec,
    MultiblockMasking,
    RandomMasking,
)
from support_masks import DEMO, FIXED, PUBLISHED, draw, multiblocks
from support_runs import tiny


def covered(found: masks.Masks, grid: int) -> NDArray[np.float64]:
    """Share of each image's patches in a target."""
    rows = [len(np.unique(targets)) for targets in found.targets]
    return np.array(rows) / grid**2


class TestMeasures:
    @pytest.mark.parametrize(("masking", "grid"), [(FIXED, 14), (PUBLISHED, 14), (DEMO, 4)])
    def test_effective_ratio_is_what_is_drawn(self, masking: MultiblockMasking, grid: int) -> None:
        drawn = [covered(draw(masking, grid, step, 32), grid) for step in range(150)]
        assert masks.effective_ratio(masking, grid) == pytest.approx(np.mean(drawn), abs=0.01)

    @pytest.mark.parametrize(("masking", "grid"), [(FIXED, 14), (PUBLISHED, 14), (DEMO, 4)])
    def test_context_tokens_are_what_is_drawn(self, masking: MultiblockMasking, grid: int) -> None:
        drawn = [draw(masking, grid, step, 16).context.shape[1] for step in range(200)]
        expected = masks.context_tokens(masking, grid, batch_size=16)
        assert expected == pytest.approx(np.mean(drawn), rel=0.04)

    def test_published_context_lengths(self) -> None:
        """METHOD 2.1: 60.6 patches at batch 16 and 53.7 at 64, measured on the official code."""
        for batch, tokens in ((16, 60.6), (64, 53.7)):
            found = masks.context_tokens(PUBLISHED, 14, batch_size=batch)
            assert found == pytest.approx(tokens, rel=0.02)

    @settings(max_examples=15, deadline=None)
    @given(st.floats(0.3, 0.8))
    def test_with_ratio_reaches_it(self, ratio: float) -> None:
        moved = masks.with_ratio(FIXED, 14, ratio)
        assert masks.effective_ratio(moved, 14) == pytest.approx(ratio, abs=0.01)
        assert not any(masks.infeasible(moved, 14))
        assert moved.kind == "multiblock"
        low, high = moved.target.scale
        assert low / high == pytest.approx(0.75)
        assert moved.model_copy(update={"target": FIXED.target}) == FIXED

    def test_with_ratio_of_random_masking_is_the_ratio(self) -> None:
        moved = masks.with_ratio(RandomMasking(kind="random"), 8, 0.6)
        assert moved.kind == "random"
        assert moved.ratio == 0.6

    @pytest.mark.parametrize(
        ("masking", "grid", "ratio"), [(FIXED, 14, 0.97), (DEMO, 4, 0.1), (PUBLISHED, 14, 0.88)]
    )
    def test_with_ratio_refuses_what_no_scale_reaches(
        self, masking: MultiblockMasking, grid: int, ratio: float
    ) -> None:
        with pytest.raises(ValueError, match=f"masking ratio {ratio} is out of reach"):
            masks.with_ratio(masking, grid, ratio)


class TestFeasibility:
    def test_the_demo_works_with_4_and_not_with_7(self) -> None:
        assert not any(masks.infeasible(DEMO, 4))
        draw(DEMO, 4, batch=512)
        with pytest.raises(SpecError, match=r"masking\.min_keep: 7 cannot be met") as error:
            tiny(masking__min_keep=7)
        assert "give 4 or less" in str(error.value)

    def test_short_contexts_are_refused_with_a_number_that_works(self) -> None:
        crowded = MultiblockMasking(
            kind="multiblock", min_keep=50, target=BlockSpec(count=8, scale=(0.3, 0.4))
        )
        ((path, reason),) = masks.infeasible(crowded, 14)
        assert path == ("min_keep",)
        assert "leave contexts of" in reason
        assert "target.scale" in reason
        most = int(reason.split("give ")[1].split()[0])
        assert 1 <= most < 50
        eased = crowded.model_copy(update={"min_keep": most})
        assert not any(masks.infeasible(eased, 14))
        assert draw(eased, 14, batch=128).context.shape[1] >= most

    def test_no_min_keep_helps_where_nothing_is_left(self) -> None:
        full = MultiblockMasking(
            kind="multiblock",
            min_keep=1,
            target=BlockSpec(count=1, scale=(1.0, 1.0), aspect=(1, 1)),
        )
        ((_, reason),) = masks.infeasible(full, 8)
        assert "give a smaller target.scale or target.count" in reason

    def test_a_random_ratio_must_leave_both(self) -> None:
        masking = RandomMasking(kind="random", ratio=0.01)
        ((path, _),) = masks.infeasible(masking, 4)
        assert path == ("ratio",)

    def test_an_aspect_beyond_reason_is_a_strip(self) -> None:
        block = BlockSpec(count=1, scale=(0.3, 0.4), aspect=(5e-324, 5e-324))
        assert masks.block_sizes(block, 14, official=False) == {(0, 14)}

    @settings(max_examples=40, deadline=None)
    @given(multiblocks("fixed"), st.floats(0, 1, exclude_max=True))
    def test_block_sizes_hold_every_size(
        self, drawn: tuple[MultiblockMasking, int], u: float
    ) -> None:
        masking, grid = drawn
        sizes = masks.block_sizes(masking.target, grid, official=False)
        stepped = math.floor(u * 4096) / 4096
        assert block_size(stepped, masking.target, grid, official=False) in sizes
        assert all(0 <= h <= grid and 0 <= w <= grid for h, w in sizes)
