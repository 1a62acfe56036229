"""Which patches are context and which are targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from stoplab_platform.errors import Problem
from stoplab_platform.mask_plugin import OwnMasks
from stoplab_platform.specs.base import Spec
from stoplab_platform.specs.kinds import Kinds, PluginSpec

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=16)]


class BlockSpec(Spec):
    """Rectangles of patches, their sizes drawn once a step."""

    count: int = Field(default=4, ge=1, le=16)
    """Rectangles per image. Default 4 targets: I-JEPA configs."""
    scale: tuple[Share, Share] = (0.15, 0.2)
    """Range of the rectangle's share of the grid (fraction). Default 0.15 to 0.2: I-JEPA."""
    aspect: tuple[Positive, Positive] = (0.75, 1.5)
    """Range of height over width (ratio). Default 0.75 to 1.5: I-JEPA configs."""

    def checks(self) -> Iterator[Problem]:
        """Both ranges must rise."""
        for name, (low, high) in (("scale", self.scale), ("aspect", self.aspect)):
            if low > high:
                yield Problem((name,), f"[{low}, {high}] falls; give [low, high] with low <= high")


class ContextSpec(BlockSpec):
    """The context rectangle, before the targets are taken out of it."""

    count: int = Field(default=1, ge=1, le=1)
    """Context rectangles per image; only 1 is supported, as in every published config."""
    scale: tuple[Share, Share] = (0.85, 1.0)
    """Range of the rectangle's share of the grid (fraction). Default 0.85 to 1: I-JEPA."""
    aspect: tuple[Positive, Positive] = (1.0, 1.0)
    """Range of height over width (ratio). Default 1: I-JEPA configs."""


class MultiblockMasking(Spec):
    """I-JEPA's masking: several target blocks, one context block without them."""

    kind: Literal["multiblock"]
    """Names this variant."""
    target: BlockSpec = BlockSpec()
    """The target blocks."""
    context: ContextSpec = ContextSpec()
    """The context block."""
    min_keep: int = Field(default=10, ge=1, le=16384)
    """Fewest patches of a target block and of a context (patches): at least this many with
    sampler `fixed`, more than this many with `official`. Default 10: I-JEPA configs."""
    sampler: Literal["fixed", "official"] = "fixed"
    """`fixed`: context length is a function of the step, every patch can be drawn. `official`:
    the published one bit for bit (last row and column never drawn, prefix cut to the local
    batch's minimum). Default fixed."""
    context_quantile: float = Field(default=0.1, ge=0, le=0.9)
    """`fixed` only: the context length is this quantile of the lengths that the step's block
    sizes leave (fraction); images below it are drawn again. Default 0.1."""


class RandomMasking(Spec):
    """Uniformly drawn patches are the target, all others the context."""

    kind: Literal["random"]
    """Names this variant."""
    ratio: float = Field(default=0.75, gt=0, lt=1)
    """Masked share of the patches (fraction). Default 0.75: MAE."""


class PluginMasking(PluginSpec, OwnMasks):
    """Masks of a plug-in's own, drawn by NumPy; it has no torch part."""


MaskingSpec = Annotated[
    MultiblockMasking | RandomMasking | PluginMasking, Kinds("masking", PluginMasking)
]
