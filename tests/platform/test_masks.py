"""Masks: the laws of every sampler."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stoplab_platform import masks
from stoplab_platform.errors import SpecError
from stoplab_platform.specs.masking import (
    BlockSpec,
    MaskingSpec,
    MultiblockMasking,
    RandomMasking,
)
from support_masks import DEMO, FIXED, PUBLISHED, draw, multiblocks


class TestAnySampler:
    @settings(max_examples=60, deadline=None)
    @given(st.one_of(multiblocks("fixed"), multiblocks("official")), st.integers(0, 2**20))
    @pytest.mark.invariant(11, 13)
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
    @pytest.mark.invariant(14)
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
    @pytest.mark.invariant(11)
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
    @pytest.mark.invariant(12)
    def test_every_patch_is_context_and_target(self, masking: MultiblockMasking, grid: int) -> None:
        batches = [draw(masking, grid, step, 256) for step in range(40)]
        for name in ("context", "targets"):
            seen = np.concatenate([getattr(batch, name).ravel() for batch in batches])
            assert len(np.unique(seen)) == grid * grid

    @pytest.mark.invariant(12)
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

    @pytest.mark.invariant(13)
    def test_masks_out_of_reach_end_with_the_setting_named(self) -> None:
        crowded = FIXED.model_copy(
            update={"target": BlockSpec(count=8, scale=(0.5, 0.6)), "min_keep": 60}
        )
        with pytest.raises(SpecError, match=r"masking\.min_keep: .* out of reach .*14x14") as error:
            draw(crowded, 14)
        assert "target.scale" in str(error.value)


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
