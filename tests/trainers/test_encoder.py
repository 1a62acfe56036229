"""The encoder: timm's ViT, without class token, on any part of the image."""

from __future__ import annotations

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stoplab_platform.specs.model import VitSizes
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import build_model
from support_models import case
from support_runs import tiny


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return build_model(tiny(model__depth=2)).encoder


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_the_whole_image_is_timms_own_forward(encoder: Encoder, images: Tensor) -> None:
    expected = encoder.vit.forward_features(images)
    assert torch.allclose(encoder(images), expected, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=16, unique=True))
def test_kept_patches_are_embedded_as_in_the_whole(kept: list[int]) -> None:
    made = case()
    index = torch.tensor([kept, kept[::-1]])
    part = made.model.encoder.embed(made.images[:2], index)
    whole = made.model.encoder.embed(made.images[:2])
    expected = torch.stack([whole[0, kept], whole[1, kept[::-1]]])
    assert torch.allclose(part, expected, atol=1e-6)


def test_hidden_patches_do_not_matter(encoder: Encoder, images: Tensor) -> None:
    index = torch.tensor([[0, 1, 5]]).expand(3, -1)
    before = encoder(images, index)
    changed = images.clone()
    changed[:, :, 8:] = 7.0  # rows 2 and 3 of the grid
    assert torch.equal(encoder(changed, index), before)
    assert not torch.equal(encoder(changed), encoder(images))


def test_all_patches_in_any_order_give_the_same_tokens(encoder: Encoder, images: Tensor) -> None:
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1)).expand(3, -1)
    found = encoder(images, order)
    expected = torch.stack([t[i] for t, i in zip(encoder(images), order, strict=True)])
    assert torch.allclose(found, expected, atol=1e-5)


def test_features_are_the_mean_token(encoder: Encoder, images: Tensor) -> None:
    assert torch.allclose(encoder.features(images), encoder(images).mean(dim=1))
    both = encoder.blocks_features(images, last=2)
    assert both.shape == (3, 32)
    assert torch.allclose(both[:, 16:], encoder.features(images), atol=1e-6)
    assert torch.allclose(encoder.blocks_features(images, last=1), both[:, 16:])


def test_weights_load_into_a_model_that_timm_makes(images: Tensor) -> None:
    spec = tiny(
        model__encoder="vit_tiny_patch16_224", model__depth=2, model__patch_size=4,
        model__width=48, model__heads=4,
    )  # fmt: skip
    made = build_model(spec).encoder
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, depth=2, embed_dim=48, num_heads=4,
        class_token=False, global_pool="avg", fc_norm=False, num_classes=0,
    )  # fmt: skip
    theirs.load_state_dict(made.vit.state_dict())
    assert torch.allclose(theirs(images), made.features(images), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("vit_base_patch16_224", VitSizes(768, 12, 12, 16)),
        ("vit_large_patch16_224", VitSizes(1024, 24, 16, 16)),
        ("vit_huge_patch14_224", VitSizes(1280, 32, 16, 14)),
    ],
)
def test_named_encoders_have_the_published_sizes(name: str, sizes: VitSizes) -> None:
    spec = tiny(model={"encoder": name}, data__image_size=224, masking={"kind": "multiblock"})
    assert spec.model.sizes() == sizes
    with torch.device("meta"):
        made = Encoder(sizes, 224)
    assert made.grid == 224 // sizes.patch_size
    assert made.width == sizes.width
    if name == "vit_base_patch16_224":  # METHOD 1.3: 85.65 million trained
        trained = sum(p.numel() for p in made.parameters() if p.requires_grad)
        assert round(trained / 1e6, 2) == 85.65


def test_layer_norm_and_gelu_are_the_published_ones(encoder: Encoder) -> None:
    assert encoder.vit.norm.eps == encoder.vit.blocks[0].norm1.eps == 1e-6
    assert encoder.vit.blocks[0].mlp.act.approximate == "none"
    assert encoder.vit.blocks[0].attn.fused_attn


def test_bf16_autocast_keeps_tokens_close(encoder: Encoder, images: Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder(images)
    assert (found.float() - encoder(images)).abs().max() < 0.1
