"""The predictor: blocks apart, tokens without order, only the rows that are read."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stoplab_trainers.masking import TensorMasks
from stoplab_trainers.model.block import Block, picked
from stoplab_trainers.randomness import Noise
from support_models import NO_NOISE, inputs, predictor


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(1, 4))
def test_one_prediction_a_target_patch(batch: int, blocks: int, context: int, target: int) -> None:
    features, masks, noise = inputs(batch, blocks, context, target)
    assert predictor()(features, masks, noise).shape == (batch, blocks, target, 12)


@pytest.mark.invariant(16)
def test_blocks_do_not_see_each_other() -> None:
    features, masks, noise = inputs()
    made = predictor()
    whole = made(features, masks, noise)
    moved = masks.targets.clone()
    moved[:, 1] = (moved[:, 1] + 1) % 16
    other = made(features, TensorMasks(masks.context, moved), noise)
    assert torch.equal(other[:, [0, 2]], whole[:, [0, 2]])
    assert not torch.equal(other[:, 1], whole[:, 1])
    assert noise.masked is not None
    for block in range(3):
        alone = TensorMasks(masks.context, masks.targets[:, block : block + 1])
        part = made(features, alone, Noise(noise.masked[:, block : block + 1], None))
        assert torch.allclose(part[:, 0], whole[:, block], atol=1e-6)


def test_images_do_not_see_each_other() -> None:
    features, masks, noise = inputs()
    made = predictor()
    whole = made(features, masks, noise)
    features[1] += 1
    assert torch.equal(made(features, masks, noise)[0], whole[0])


@pytest.mark.invariant(17)
def test_target_tokens_have_no_order() -> None:
    features, masks, noise = inputs()
    assert noise.masked is not None
    made, order = predictor(), torch.tensor([2, 0, 1])
    turned = TensorMasks(masks.context, masks.targets[:, :, order])
    found = made(features, turned, Noise(noise.masked[:, :, order], None))
    assert torch.allclose(found, made(features, masks, noise)[:, :, order], atol=1e-6)


def test_context_tokens_have_no_order() -> None:
    features, masks, noise = inputs()
    made, order = predictor(), torch.tensor([4, 0, 3, 1, 2])
    turned = TensorMasks(masks.context[:, order], masks.targets)
    found = made(features[:, order], turned, noise)
    assert torch.allclose(found, made(features, masks, noise), atol=1e-6)


@pytest.mark.parametrize(
    "asked", [1, 4, 9, torch.tensor([[0, 8, 3], [5, 5, 1]]), torch.tensor([[2], [7]])]
)
def test_the_rows_that_are_asked_for_are_those_of_all(asked: int | torch.Tensor) -> None:
    torch.manual_seed(0)
    block, tokens = Block(12, 3, qkv_bias=True), torch.randn(2, 9, 12)
    whole, part = picked(block(tokens), asked), block(tokens, asked)
    assert torch.allclose(part, whole, atol=1e-6)
    grads = []
    for rows in (whole, part):
        block.zero_grad()
        rows.square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in block.parameters()]))
    assert torch.allclose(*grads, atol=1e-4)


def test_what_says_masked() -> None:
    _, masks, _ = inputs()
    ours, theirs, off = (
        predictor(kind="deterministic"),
        predictor(noise_std=0.0, parametrization="official"),
        predictor(kind="deterministic", parametrization="official"),
    )
    psi = ours.pos_embed[0][masks.targets]
    assert ours.mask_token is not None
    assert torch.equal(ours.masked_tokens(masks, NO_NOISE), psi + ours.mask_token)
    assert torch.equal(theirs.masked_tokens(masks, NO_NOISE), psi + theirs.embed.bias)
    assert torch.equal(off.masked_tokens(masks, NO_NOISE), psi)
