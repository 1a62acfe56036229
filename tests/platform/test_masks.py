"""Masks: the laws of every sampler, the published numbers, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from stoplab_platform import masks
from stoplab_platform.errors import SpecError
from stoplab_platform.mask_blocks import Sizes, block_size
from stoplab_platform.mask_official import (
    TorchStream,
    official_masks,
    official_sizes,
    truncated,
)
from stoplab_platform.specs.masking import (
    BlockSpec,
    ContextSpec,
    MaskingSpec,
    MultiblockMasking,
    RandomMasking,
)
from support_runs import tiny

PUBLISHED = MultiblockMasking(kind="multiblock", sampler="official")
FIXED = MultiblockMasking(kind="multiblock")
DEMO = MultiblockMasking(
    kind="multiblock", min_keep=4, target=BlockSpec(count=3, scale=(0.2, 0.35))
)


def draw(masking: MaskingSpec, grid: int, step: int = 0, batch: int = 8, **kw: Any) -> masks.Masks:
    rows = kw.pop("rows", slice(0, batch))
    return masks.draw(masking, grid, seed=kw.pop("seed", 0), step=step, batch_size=batch, rows=rows)


@st.composite
def multiblocks(pick: st.DrawFn, sampler: str) -> tuple[MultiblockMasking, int]:
    """Any masking on any grid of 4 to 32; most of them cannot be drawn."""
    low = pick(st.floats(0.05, 0.4))
    tall = pick(st.floats(0.5, 1.0))
    masking = MultiblockMasking(
        kind="multiblock",
        sampler="official" if sampler == "official" else "fixed",
        target=BlockSpec(
            count=pick(st.integers(1, 5)),
            scale=(low, low + pick(st.floats(0, 0.2))),
            aspect=(tall, tall + pick(st.floats(0, 1.0))),
        ),
        context=ContextSpec(scale=(pick(st.floats(0.6, 1.0)), 1.0)),
        min_keep=pick(st.integers(1, 12)),
        context_quantile=pick(st.floats(0, 0.5)),
    )
    return masking, pick(st.integers(4, 32))


class TestAnySampler:
    @settings(max_examples=60, deadline=None)
    @given(st.one_of(multiblocks("fixed"), multiblocks("official")), st.integers(0, 2**20))
    def test_masks_are_lawful_or_refused_beforehand(
        self, drawn: tuple[MultiblockMasking, int], step: int
    ) -> None:
        masking, grid = drawn
        assume(not any(masks.infeasible(masking, grid)))
        found = draw(masking, grid, step)
        for index in (found.context, found.targets):
            assert index.dtype == np.int64
            assert index.min() >= 0
            assert index.max() < grid * grid
            assert (np.diff(index, axis=-1) > 0).all()
        assert found.context.shape[0] == found.targets.shape[0] == 8
        assert found.targets.shape[1] == masking.target.count
        assert found.targets.shape[2] >= masking.min_keep
        assert found.context.shape[1] >= masking.min_keep

    @pytest.mark.parametrize(
        "masking", [FIXED, PUBLISHED, RandomMasking(kind="random")], ids=lambda m: m.kind
    )
    def test_rows_do_not_depend_on_the_split(self, masking: MaskingSpec) -> None:
        whole = draw(masking, 14, 5, 12)
        parts = [draw(masking, 14, 5, 12, rows=slice(a, a + 4)) for a in (0, 4, 8)]
        assert (np.concatenate([part.targets for part in parts]) == whole.targets).all()
        for part, context in zip(parts, np.split(whole.context, 3), strict=True):
            assert (part.context[:, : whole.context.shape[1]] == context).all()

    @pytest.mark.parametrize("masking", [FIXED, PUBLISHED, RandomMasking(kind="random")])
    def test_seed_and_step_move_every_mask(self, masking: MaskingSpec) -> None:
        drawn = [draw(masking, 14, s, seed=seed).targets for s, seed in ((0, 0), (1, 0), (0, 1))]
        keys = {tuple(part.ravel()[:40]) for part in drawn}
        assert len(keys) == 3


class TestFixed:
    @settings(max_examples=40, deadline=None)
    @given(multiblocks("fixed"), st.integers(0, 2**20), st.integers(0, 3))
    def test_contexts_avoid_targets_and_their_length_follows_from_the_step(
        self, drawn: tuple[MultiblockMasking, int], step: int, seed: int
    ) -> None:
        masking, grid = drawn
        assume(not any(masks.infeasible(masking, grid)))
        found = draw(masking, grid, step, seed=seed)
        for context, targets in zip(found.context, found.targets, strict=True):
            assert not np.intersect1d(context, targets).size
        other = draw(masking, grid, step, 200, seed=seed, rows=slice(190, 193))
        assert other.context.shape[1] == found.context.shape[1]
        assert other.targets.shape[2] == found.targets.shape[2]

    @pytest.mark.parametrize(("masking", "grid"), [(FIXED, 14), (DEMO, 4)])
    def test_every_patch_is_context_and_target(self, masking: MultiblockMasking, grid: int) -> None:
        batches = [draw(masking, grid, step, 256) for step in range(20)]
        for name in ("context", "targets"):
            seen = np.concatenate([getattr(batch, name).ravel() for batch in batches])
            assert len(np.unique(seen)) == grid * grid

    def test_the_cut_favours_no_row_of_patches(self) -> None:
        """The published cut keeps the top; here first and last rows are kept alike."""
        batches = [draw(FIXED, 14, step, 256).context for step in range(10)]
        rows = np.concatenate([batch.ravel() for batch in batches]) // 14
        counts = np.bincount(rows, minlength=14)
        assert abs(counts[0] / counts[13] - 1) < 0.1

    def test_few_context_lengths(self) -> None:
        """A compiler sees one shape per pair of block sizes."""
        shapes = {
            (d.context.shape[1], d.targets.shape[2])
            for d in (draw(FIXED, 14, step, 2) for step in range(200))
        }
        targets, contexts = (
            masks.block_sizes(block, 14, official=False) for block in (FIXED.target, FIXED.context)
        )
        assert len(shapes) <= len(targets) * len(contexts) <= 20

    def test_the_quantile_sets_the_length(self) -> None:
        lengths = [
            masks.context_tokens(FIXED.model_copy(update={"context_quantile": q}), 14)
            for q in (0.0, 0.1, 0.5, 0.9)
        ]
        assert lengths == sorted(lengths)
        assert lengths[0] < lengths[-1]

    def test_masks_out_of_reach_end_with_the_setting_named(self) -> None:
        crowded = FIXED.model_copy(
            update={"target": BlockSpec(count=8, scale=(0.5, 0.6)), "min_keep": 60}
        )
        with pytest.raises(SpecError, match=r"masking\.min_keep: .* out of reach .*14x14") as error:
            draw(crowded, 14)
        assert "target.scale" in str(error.value)


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


class TestRandom:
    @settings(max_examples=30, deadline=None)
    @given(st.floats(0.05, 0.95), st.integers(4, 24))
    def test_context_and_target_make_up_the_image(self, ratio: float, grid: int) -> None:
        masking = RandomMasking(kind="random", ratio=ratio)
        found = draw(masking, grid)
        assert found.targets.shape == (8, 1, round(ratio * grid * grid))
        both = np.concatenate([found.context, found.targets[:, 0]], axis=1)
        assert (np.sort(both, axis=1) == np.arange(grid * grid)).all()
        assert masks.effective_ratio(masking, grid) == found.targets.shape[2] / grid**2
        assert masks.context_tokens(masking, grid) == found.context.shape[1]


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

    @pytest.mark.parametrize(("masking", "grid", "ratio"), [(FIXED, 14, 0.97), (DEMO, 4, 0.1)])
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
