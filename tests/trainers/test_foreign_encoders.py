"""ViT encoders of timm, DINO and MAE to start from: what is taken, left out, and refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from stoplab_platform.errors import SpecError
from stoplab_platform.specs.weights import Start
from stoplab_trainers.model.jepa import Jepa, build_model, target_of
from stoplab_trainers.weights.start import start_from
from support_runs import tiny

SIZES: dict[str, Any] = {
    "img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2,
}  # fmt: skip
QKV = "blocks.0.attn.qkv.weight"


def made(**options: Any) -> dict[str, Tensor]:
    """The state dict of an encoder that timm makes, in the sizes of `tiny`."""
    model = timm.create_model("vit_tiny_patch16_224", **SIZES, **options)
    for number, value in enumerate(model.state_dict().values()):
        value.add_(0.01 * (number + 1))  # timm begins with norms of 1 and biases of 0
    return dict(model.state_dict())


def sincos_behind_a_class_token(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """MAE's positions: the fixed table, and zeros in front."""
    table = build_model(tiny()).encoder.vit.pos_embed.detach()
    return {**weights, "pos_embed": torch.cat([torch.zeros(1, 1, 16), table], dim=1)}


def started(path: Path, content: Any, **options: Any) -> Jepa:
    """A model that starts from a file's encoder."""
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    model = build_model(tiny())
    table, target = model.encoder.vit.pos_embed.clone(), target_of(model.encoder)
    drawn = model.predictor.state_dict()
    drawn = {name: value.clone() for name, value in drawn.items()}
    found = start_from(Start(path=str(path), **options), model, target)
    assert found.layout == "encoder"
    assert torch.equal(model.encoder.vit.pos_embed, table)
    for one, other in (
        (model.encoder.state_dict(), target.state_dict()),
        (model.predictor.state_dict(), drawn),
    ):
        assert all(torch.equal(one[name], other[name]) for name in one)
    return model


def test_a_vit_of_timm_starts_a_run_once_its_positions_are_given_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights, path = made(), tmp_path / "vit.safetensors"
    with pytest.raises(SpecError) as error:
        started(path, weights)
    said = str(error.value)
    assert "pos_embed is no sin-cos table" in said
    assert "other_positions: leave_out" in said
    assert "unknown" not in said
    assert "missing" not in said
    model = started(path, weights, other_positions="leave_out")
    own = model.encoder.state_dict()
    for name in weights.keys() - {"cls_token", "pos_embed", "head.weight", "head.bias"}:
        assert torch.equal(own[f"vit.{name}"], weights[name]), name
    assert "left out cls_token, head, pos_embed" in caplog.text
    assert "was not trained with them" in caplog.text


@pytest.mark.parametrize("token", [False, True])
def test_the_norm_behind_the_mean_is_taken_for_the_final_norm(token: bool, tmp_path: Path) -> None:
    weights = made(class_token=token, global_pool="avg")
    assert "norm.weight" not in weights
    model = started(tmp_path / "gap.pth", weights, other_positions="leave_out")
    assert torch.equal(model.encoder.vit.norm.weight, weights["fc_norm.weight"])
    assert torch.equal(model.encoder.vit.norm.bias, weights["fc_norm.bias"])


def test_an_encoder_of_mae(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its positions are the ones here, so that nothing has to be given up but its decoder."""
    weights = sincos_behind_a_class_token(made(num_classes=0))
    more = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 16)}
    with caplog.at_level(logging.WARNING):
        model = started(tmp_path / "mae.pth", {"model": {**weights, **more}, "epoch": 800})
    assert torch.equal(model.encoder.state_dict()[f"vit.{QKV}"], weights[QKV])
    assert "left out cls_token, decoder_embed, mask_token" in caplog.text
    assert "not trained with" not in caplog.text


def test_a_checkpoint_of_dino_gives_its_teacher(tmp_path: Path) -> None:
    student, teacher = made(num_classes=0), made(num_classes=0)
    teacher[QKV] = teacher[QKV] + 1
    head = {"module.head.mlp.0.weight": torch.zeros(8, 16)}
    wrapped = {
        name: {**{f"module.backbone.{n}": v for n, v in weights.items()}, **head}
        for name, weights in (("student", student), ("teacher", teacher))
    }
    content = {**wrapped, "epoch": 100, "args": "…"}
    model = started(tmp_path / "dino.pth", content, other_positions="leave_out")
    assert torch.equal(model.encoder.state_dict()[f"vit.{QKV}"], teacher[QKV])


def test_the_authors_target_encoder_alone(tmp_path: Path) -> None:
    table = build_model(tiny()).encoder.vit.pos_embed.detach()
    ema = {**made(num_classes=0, class_token=False, global_pool="avg", fc_norm=False),
           "pos_embed": table}  # fmt: skip
    student = {name: value + 1 for name, value in ema.items()}
    content = {"encoder": student, "target_encoder": {f"module.{n}": v for n, v in ema.items()}}
    for parts in (content, {"target_encoder": ema}):
        model = started(tmp_path / "target.pth", parts)
        assert torch.equal(model.encoder.vit.norm.bias, ema["norm.bias"])


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"init_values": 1e-5}, r"unknown: blocks\.0\.ls1\.gamma, blocks\.0\.ls2\.gamma"),
        ({"qk_norm": True}, r"unknown: blocks\.0\.attn\.k_norm"),
        ({"reg_tokens": 4}, r"unknown: reg_token"),
        ({"qkv_bias": False}, r"missing: blocks\.0\.attn\.qkv\.bias"),
        ({"patch_size": 8}, r"of another shape: patch_embed\.proj\.weight"),
    ],
)
def test_what_changes_the_function_of_the_blocks_is_refused(
    options: dict[str, Any], names: str, tmp_path: Path
) -> None:
    model = timm.create_model("vit_tiny_patch16_224", **{**SIZES, **options})
    with pytest.raises(SpecError, match=names):
        started(tmp_path / "other.pth", model.state_dict(), other_positions="leave_out")
