"""Masks as tensors."""

from __future__ import annotations

import pytest
import torch

from stoplab_platform import masks
from stoplab_trainers.masking import draw_masks
from support_runs import tiny


@pytest.mark.parametrize("sampler", ["fixed", "official"])
def test_they_are_the_platforms_masks(sampler: str) -> None:
    spec = tiny(masking__sampler=sampler, masking__min_keep=3, seed=5)
    drawn = masks.draw(spec.masking, 4, seed=5, step=7, batch_size=64, rows=slice(8, 16))
    found = draw_masks(spec, 7, slice(8, 16))
    assert found.context.dtype == found.targets.dtype == torch.int64
    assert found.context.tolist() == drawn.context.tolist()
    assert found.targets.tolist() == drawn.targets.tolist()


def test_positions_move_no_mask() -> None:
    """Both arms of a pair see the same masks."""
    stochastic, deterministic = (
        draw_masks(tiny(positions__kind=kind), 3, slice(0, 64))
        for kind in ("stochastic", "deterministic")
    )
    assert torch.equal(stochastic.context, deterministic.context)
    assert torch.equal(stochastic.targets, deterministic.targets)


def test_ranks_share_shapes() -> None:
    spec = tiny()
    for step in range(20):
        parts = [draw_masks(spec, step, slice(r, r + 16)) for r in (0, 16, 32, 48)]
        assert len({part.context.shape for part in parts}) == 1
        assert len({part.targets.shape for part in parts}) == 1
