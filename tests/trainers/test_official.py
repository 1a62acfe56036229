"""The authors' checkpoints: in, out, and what does not fit."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stoplab_platform.errors import CheckpointError
from stoplab_trainers.checkpoint import weights_sha256
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import Jepa, build_model, target_of
from stoplab_trainers.recordings import read, start
from stoplab_trainers.weights.official import load_official, to_official
from support_models import case
from support_reference import CONFIG, encode, encoder_weights, predict, predictor_weights
from support_runs import tiny

GOLDEN = Path(__file__).parents[1] / "golden" / "reference.npz"
SPEC: dict[str, Any] = {
    "model__width": 24, "model__depth": 2, "model__heads": 3, "model__patch_size": 3,
    "model__predictor__width": 12, "model__predictor__depth": 3, "data__image_size": 12,
    "evals": [], "masking": {"kind": "random", "ratio": 0.5},
}  # fmt: skip
OFFICIAL = {"positions__parametrization": "official"}


def fresh(**changes: Any) -> tuple[Jepa, Encoder]:
    model = build_model(tiny(**{**SPEC, **changes}))
    return model, target_of(model.encoder)


def theirs(seed: int = 0, prefix: str = "") -> dict[str, Any]:
    """A checkpoint in their layout, of the sizes of `SPEC`."""
    generator = torch.Generator().manual_seed(seed)
    parts = {
        "encoder": encoder_weights(CONFIG, generator),
        "predictor": predictor_weights(CONFIG, generator),
        "target_encoder": encoder_weights(CONFIG, generator),
    }
    return {
        **{part: {prefix + n: v for n, v in weights.items()} for part, weights in parts.items()},
        "opt": {}, "scaler": None, "epoch": 7, "loss": 0.1, "batch_size": 2, "world_size": 1,
        "lr": 1e-3,
    }  # fmt: skip


def with_memory(state: dict[str, Any], *, read_token: bool) -> dict[str, Any]:
    """With the optimiser's memory of which weights ever had a gradient."""
    groups, number, remembered = [], 0, {}
    for decayed in (True, False):
        for part in ("encoder", "predictor"):
            group = [
                name
                for name, v in state[part].items()
                if ("bias" not in name and v.ndim != 1) == decayed
            ]
            for i, name in enumerate(group):
                if not name.endswith("pos_embed") and (read_token or "mask_token" not in name):
                    remembered[number + i] = {"step": torch.tensor(1.0)}
            groups.append({"params": list(range(number, number + len(group)))})
            number += len(group)
    return {**state, "opt": {"state": remembered, "param_groups": groups}}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.invariant(27)
def test_their_weights_compute_the_same_here(prefix: str) -> None:
    state, plain = theirs(prefix=prefix), theirs()
    model, target = fresh(positions={"kind": "deterministic"})
    load_official(model, target, state)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 12, 12, generator=generator)
    torch.testing.assert_close(
        target(images), encode(plain["target_encoder"], images, 3), rtol=1e-5, atol=1e-5
    )
    made = case(2, **SPEC, positions={"kind": "deterministic"})
    context = encode(plain["encoder"], images, 3, made.masks.context)
    masks = made.masks.context, made.masks.targets.transpose(0, 1)
    rows = predict(plain["predictor"], context, masks, None, 3)
    ours = model(images, made.masks, made.noise).transpose(0, 1).flatten(0, 1)
    torch.testing.assert_close(ours, rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, OFFICIAL, {"positions": {"kind": "deterministic"}}])
@pytest.mark.invariant(27)
def test_there_and_back_to_the_bit(changes: dict[str, Any]) -> None:
    model, target = fresh(seed=3, **changes)
    again, its_target = fresh(seed=4, **changes)
    assert not same(model.state_dict(), again.state_dict())
    load_official(again, its_target, to_official(model, target))
    assert same(model.state_dict(), again.state_dict())
    assert same(target.state_dict(), its_target.state_dict())
    assert weights_sha256(model.state_dict()) == weights_sha256(again.state_dict())


def test_their_layout_comes_back_as_it_was() -> None:
    state = theirs()
    model, target = fresh()
    load_official(model, target, state)
    written = to_official(model, target)
    assert list(written) == ["encoder", "predictor", "target_encoder"]
    for part, weights in written.items():
        assert same(weights, state[part])


def test_the_recorded_reference_has_these_names() -> None:
    begin = start(read(GOLDEN))
    config = read(GOLDEN).config
    width, _, patch, _ = begin.encoder["patch_embed.proj.weight"].shape
    inner = begin.predictor["predictor_embed.weight"].shape[0]
    depths = (
        len({n.split(".")[1] for n in w if "blocks." in n})
        for w in (begin.encoder, begin.predictor)
    )
    size = patch * round(begin.encoder["pos_embed"].shape[1] ** 0.5)
    model, target = fresh(
        model__width=width, model__heads=config["heads"], model__patch_size=patch,
        model__predictor__width=inner, model__depth=next(depths),
        model__predictor__depth=next(depths), data__image_size=size,
    )  # fmt: skip
    state = {
        "encoder": begin.encoder, "predictor": begin.predictor, "target_encoder": begin.encoder
    }  # fmt: skip
    load_official(model, target, state)
    assert same(to_official(model, target)["predictor"], begin.predictor)


@pytest.mark.invariant(27)
def test_all_that_does_not_fit_is_told_at_once() -> None:
    state = theirs()
    state["encoder"]["cls_token"] = torch.zeros(1, 1, 24)
    del state["encoder"]["blocks.1.norm2.bias"]
    state["predictor"]["predictor_proj.weight"] = torch.zeros(25, 12)
    state["target_encoder"]["pos_embed"] = torch.zeros(1, 16, 24)
    state["target_encoder"]["norm.bias"] = 3
    state["surprise"] = {"w": torch.zeros(1)}
    model, target = fresh()
    before = weights_sha256(model.state_dict())
    with pytest.raises(CheckpointError) as error:
        load_official(model, target, state)
    said = str(error.value)
    for line in (
        "encoder: unknown: cls_token",
        "encoder: missing: blocks.1.norm2.bias",
        "predictor: of another shape: predictor_proj.weight [25, 12] (here [24, 12])",
        "target_encoder: not a tensor: norm.bias",
        "target_encoder: not the sin-cos table that positions are here: pos_embed",
        "surprise: unknown",
    ):
        assert line in said
    assert weights_sha256(model.state_dict()) == before
    with pytest.raises(CheckpointError, match=r"target_encoder: missing$"):
        load_official(model, target, {k: v for k, v in theirs().items() if k != "target_encoder"})


def test_what_lies_beside_the_weights_is_told_and_no_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, target = fresh(**OFFICIAL)
    load_official(model, target, {**theirs(), "config": {"lr": 1e-3}, "git": "abc"})
    assert "not read of the file: config, git" in caplog.text
    assert torch.equal(model.encoder.vit.norm.bias, theirs()["encoder"]["norm.bias"])


def test_another_patch_size_is_told_another_image_size_is_none() -> None:
    model, target = fresh(data__image_size=18)
    table = model.predictor.pos_embed.clone()
    load_official(model, target, theirs())
    assert torch.equal(model.predictor.pos_embed, table)
    assert torch.equal(model.encoder.vit.norm.bias, theirs()["encoder"]["norm.bias"])
    model, target = fresh(model__patch_size=2)
    with pytest.raises(CheckpointError, match=r"patch_embed.proj.weight \[24, 3, 3, 3\] \(here"):
        load_official(model, target, theirs())


def test_a_mask_token_that_was_never_read(caplog: pytest.LogCaptureFixture) -> None:
    stop, ijepa = (with_memory(theirs(), read_token=token) for token in (False, True))
    with pytest.raises(CheckpointError, match="parametrization to official"):
        load_official(*fresh(), stop)
    with caplog.at_level(logging.WARNING, "stoplab.weights"):
        load_official(*fresh(**OFFICIAL), stop)
        load_official(*fresh(), ijepa)
        assert not caplog.records
        load_official(*fresh(**OFFICIAL), ijepa)
        assert "left out" in caplog.text
        load_official(*fresh(), theirs())
        assert "does not tell" in caplog.text


def test_the_bias_is_the_mask_token_of_the_official_parametrisation() -> None:
    """StoP's checkpoint read as `official` is the same function as I-JEPA with m = b."""
    state = theirs()
    official = fresh(**OFFICIAL, positions__noise_std=0.0)
    load_official(*official, state)
    state["predictor"]["mask_token"] = state["predictor"]["predictor_embed.bias"][None, None]
    plain = fresh(positions={"kind": "deterministic"})
    load_official(*plain, state)
    made = case(2, **SPEC, positions={"kind": "deterministic"})
    one, other = (m(made.images, made.masks, made.noise) for m, _ in (official, plain))
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_an_untied_projection_has_no_place_there() -> None:
    with pytest.raises(CheckpointError, match=r"no place for noise\.proj\.weight"):
        to_official(*fresh(positions__covariance="untied"))
