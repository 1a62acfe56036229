"""Block and linear map: those of timm and torch, whichever library multiplies."""

from __future__ import annotations

import pytest
import timm.models.vision_transformer
import torch
from torch import Tensor
from torch.nn import functional as F

from stoplab_trainers.model import linear as module
from stoplab_trainers.model.block import Block
from stoplab_trainers.model.linear import linear

HAS_ONEDNN = torch.backends.mkldnn.is_available()


@pytest.fixture(params=["torch", "onednn"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both on any processor, at any size."""
    if request.param == "onednn" and not HAS_ONEDNN:
        pytest.skip("torch was built without oneDNN")
    monkeypatch.setattr(module, "LEAST", 0)
    monkeypatch.setattr(module, "onednn_is_faster", lambda: request.param == "onednn")
    return str(request.param)


def gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, out.numel()).reshape(out.shape)
    return list(torch.autograd.grad((out * weights).sum(), inputs))


@pytest.mark.parametrize(("inner", "outer"), [(8, 24), (24, 8), (7, 5)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_linear_map_and_its_gradients(
    library: str, inner: int, outer: int, has_bias: bool
) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 6, inner)[:, 1:], torch.randn(outer, inner)
    bias = torch.randn(outer) if has_bias else None
    inputs = [one.requires_grad_() for one in (x, weight, bias) if one is not None]
    found, expected = linear(x, weight, bias), F.linear(x, weight, bias)
    assert found.grad_fn is not None
    assert ("OneDnn" in found.grad_fn.name()) == (library == "onednn")
    assert torch.allclose(found, expected, atol=1e-5)
    for one, other in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        assert one.shape == other.shape
        assert one.is_contiguous()
        assert torch.allclose(one, other, atol=1e-5)


def test_a_block_is_timms_own(library: str) -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 9, 12, requires_grad=True)
    ours, theirs = (
        kind(12, 3, qkv_bias=True) for kind in (Block, timm.models.vision_transformer.Block)
    )
    ours.load_state_dict(theirs.state_dict())
    found, expected = ours(tokens), theirs(tokens)
    assert torch.allclose(found, expected, atol=1e-6)
    pairs = zip(
        gradients(found, [tokens, *ours.parameters()]),
        gradients(expected, [tokens, *theirs.parameters()]),
        strict=True,
    )
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in pairs)


def test_half_precision_and_small_products_stay_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "onednn_is_faster", lambda: True)
    x, weight = torch.randn(4, 8, requires_grad=True), torch.randn(8, 8)
    small = linear(x, weight, None)
    monkeypatch.setattr(module, "LEAST", 0)
    with torch.autocast("cpu", torch.bfloat16):
        half = linear(x, weight, None)
    assert half.dtype == torch.bfloat16
    for out in (small, half):
        assert out.grad_fn is not None
        assert "OneDnn" not in out.grad_fn.name()


def test_attention_is_not_cudnns() -> None:
    """Whose backward pass can give gradients that are no number; nor from a compiler's cache."""
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    assert "without-cudnn-attention" in torch.compiler.config.cache_key_tag
