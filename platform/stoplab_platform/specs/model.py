"""Encoder and predictor: their sizes, their start."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from pydantic import Field

from stoplab_platform.errors import Problem
from stoplab_platform.specs.base import Spec
from stoplab_platform.specs.weights import StartSpec


@dataclass(frozen=True)
class VitSizes:
    """Sizes of a plain ViT; width and patch_size in channels and pixels."""

    width: int
    depth: int
    heads: int
    patch_size: int
    mlp_ratio: float = 4.0


class PredictorSpec(Spec):
    """The narrow transformer that predicts target features."""

    width: int = Field(default=384, ge=8, le=65536)
    """Channels. Default 384: every published I-JEPA and StoP config."""
    depth: int = Field(default=6, ge=1, le=1024)
    """Blocks. Default 6: StoP paper, table 10 (ViT-B); L and H use 12."""
    heads: int | None = Field(default=None, ge=1, le=4096)
    """Attention heads; null takes the encoder's, as the published code does. Default null."""


class ModelSpec(Spec):
    """What is trained."""

    encoder: str = "vit_base_patch16_224"
    """A timm ViT (`vit_*`), or `custom` with width, depth, heads and patch_size given.
    Default vit_base_patch16_224: StoP paper, table 1."""
    width: int | None = Field(default=None, ge=8, le=65536)
    """Encoder channels, in place of the named one's. Default null: as named."""
    depth: int | None = Field(default=None, ge=1, le=1024)
    """Encoder blocks, in place of the named one's. Default null: as named."""
    heads: int | None = Field(default=None, ge=1, le=4096)
    """Attention heads, in place of the named one's. Default null: as named."""
    patch_size: int | None = Field(default=None, ge=1, le=4096)
    """Patch side in pixels, in place of the named one's. Default null: as named."""
    predictor: PredictorSpec = PredictorSpec()
    """The predictor."""
    init: Literal["published", "small"] = "published"
    """`published`: truncated normal, std 0.02. `small`: Xavier-uniform linears and patch
    embedding N(0, 1/fan_in), which tiny models need. Default published: I-JEPA code."""
    init_from: StartSpec | None = None
    """Weights to start from: a checkpoint or a run's folder, a checkpoint file of the I-JEPA or
    StoP repositories, or an encoder in timm's names, by path, or URL of a file; or
    `{job: …}`, `{mlflow_run: …}`. Default null: random weights."""

    def sizes(self) -> VitSizes:
        """The encoder's sizes after overrides; ValueError where they are not known."""
        known = vit_table().get(self.encoder, {})
        merged: dict[str, Any] = {
            "width": self.width or known.get("width"),
            "depth": self.depth or known.get("depth"),
            "heads": self.heads or known.get("heads"),
            "patch_size": self.patch_size or known.get("patch_size"),
        }
        missing = [name for name, value in merged.items() if value is None]
        if missing:
            raise ValueError(f"encoder {self.encoder!r} needs {', '.join(missing)}")
        return VitSizes(**merged, mlp_ratio=known.get("mlp_ratio", 4.0))

    @property
    def predictor_heads(self) -> int:
        """Attention heads of the predictor (the encoder's unless given)."""
        return self.predictor.heads or self.sizes().heads

    def checks(self) -> Iterator[Problem]:
        """Names must be known, widths must divide."""
        if self.encoder != "custom" and self.encoder not in vit_table():
            yield Problem(
                ("encoder",), f"{self.encoder!r} is no timm ViT; give a `vit_*` name or `custom`"
            )
            return
        try:
            sizes = self.sizes()
        except ValueError as error:
            yield Problem(("encoder",), str(error))
            return
        if sizes.width % sizes.heads or sizes.width % 4:
            yield Problem(
                ("width",),
                f"{sizes.width} must divide by 4 and by heads ({sizes.heads})",
                (("heads",), ("encoder",)),
            )
        heads = self.predictor_heads
        if self.predictor.width % heads or self.predictor.width % 4:
            yield Problem(
                ("predictor", "width"),
                f"{self.predictor.width} must divide by 4 and by its heads ({heads})",
                (("heads",), ("predictor", "heads"), ("encoder",)),
            )


@cache
def vit_table() -> dict[str, dict[str, Any]]:
    """Sizes of timm's plain ViTs, by name (vits.json, written by `make vits`)."""
    text = files("stoplab_platform").joinpath("vits.json").read_text()
    table: dict[str, dict[str, Any]] = json.loads(text)
    return table
