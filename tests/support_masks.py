"""Maskings and ways to draw them, for tests."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from stoplab_platform import masks
from stoplab_platform.specs.masking import (
    BlockSpec,
    ContextSpec,
    MaskingSpec,
    MultiblockMasking,
)

PUBLISHED = MultiblockMasking(kind="multiblock", sampler="official")
FIXED = MultiblockMasking(kind="multiblock")
DEMO = MultiblockMasking(
    kind="multiblock", min_keep=4, target=BlockSpec(count=3, scale=(0.2, 0.35))
)


def draw(masking: MaskingSpec, grid: int, step: int = 0, batch: int = 8, **kw: Any) -> masks.Masks:
    """Masks of a batch, or of its `rows`."""
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
