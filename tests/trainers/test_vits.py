"""The table of ViT sizes says what timm builds."""

from __future__ import annotations

import pytest
import timm
import torch

from stoplab_platform.specs.model import ModelSpec, vit_table
from stoplab_trainers.vits import plain_vits, sizes_of


@pytest.mark.parametrize(
    "name", ["vit_tiny_patch16_224", "vit_base_patch16_224", "vit_so400m_patch14_siglip_224"]
)
def test_the_table_says_what_timm_builds(name: str) -> None:
    sizes = ModelSpec(encoder=name).sizes()
    assert sizes == sizes_of(name)
    with torch.device("meta"):
        built = timm.create_model(name, num_classes=0)
    hidden = built.blocks[0].mlp.fc1.out_features
    assert int(sizes.width * sizes.mlp_ratio) == hidden


def test_only_plain_vits_are_in_the_table() -> None:
    assert set(vit_table()) <= set(plain_vits())
    assert "vit_base_r50_s16_224" not in vit_table()
    assert sizes_of("vit_giant_patch14_dinov2") is None, "its blocks are gated"
