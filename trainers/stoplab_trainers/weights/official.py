"""Checkpoints in the layout of the I-JEPA and StoP repositories, both ways.

Their file is a dict with `encoder`, `predictor` and `target_encoder`, each a state dict, with or
without DDP's `module.` before every name; beside them lies what their training needs to go on,
which is not read but for one thing: whether `mask_token` was ever trained. StoP's code holds a mask
token and never reads it (the projection's bias plays that part: our parametrization `official`);
I-JEPA's reads it (our `stoplab`, without noise).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stoplab_platform.errors import CheckpointError
from stoplab_platform.specs.positions import PluginPositions
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import Jepa, build_model, of_positions, target_of
from stoplab_trainers.weights.checks import EXACT, ExportFailed, held, probe_images
from stoplab_trainers.weights.fitting import Part, fill, fixed_tables
from stoplab_trainers.weights.foreign import DDP, has_tensors, without
from stoplab_trainers.weights.names import (
    MASK_TOKEN,
    Weights,
    encoder_theirs,
    predictor_theirs,
    renamed,
)
from stoplab_trainers.weights.trained import Trained

log = logging.getLogger("stoplab.weights")

PARTS = ("encoder", "predictor", "target_encoder")
NOT_READ = ("opt", "scaler", "epoch", "loss", "batch_size", "world_size", "lr")


def is_official(state: Mapping[str, Any]) -> bool:
    """Whether a file's content has this layout; its encoders alone are as good as timm's."""
    return isinstance(state.get("predictor"), Mapping)


def load_official(model: Jepa, target: Encoder, state: Mapping[str, Any]) -> None:
    """Copy a checkpoint's weights into student and target; positions, which are fixed, stay.

    The grids may differ, so another image size is no fault. CheckpointError names all unknown,
    missing and misshapen keys at once, and a mask token that was never trained where the model
    would read it. What lies beside the weights and is not known, is told in the log.
    """
    given = {part: _named(state[part]) for part in PARTS if part in state}
    trained = _mask_token_trained(state, given.get("predictor", {}))
    beside = {key: value for key, value in state.items() if key not in (*PARTS, *NOT_READ)}
    weights = [key for key, value in beside.items() if _holds_weights(value)]
    if unknown := [str(key) for key in beside if key not in weights]:
        log.warning("not read of the file: %s", ", ".join(unknown))
    others = [f"{key}: unknown" for key in weights]
    copy_official(model, target, given, [*others, *_mask_token_faults(model, trained)])


def copy_official(
    model: Jepa, target: Encoder, given: Mapping[str, dict[str, Any]], others: Sequence[str] = ()
) -> None:
    """Copy the three state dicts, as `to_official` gives them, into student and target.

    CheckpointError names everything that does not fit, and ``others``.
    """
    if model.predictor.mask_token is None:
        given.get("predictor", {}).pop(MASK_TOKEN, None)
    modules = {"encoder": model.encoder, "predictor": model.predictor, "target_encoder": target}
    tables = fixed_tables(model.encoder)
    parts = [
        Part("predictor", modules[name], given[name], predictor_theirs, fixed_tables(modules[name]))
        if name == "predictor"
        else Part(name, modules[name], given[name], encoder_theirs, tables)
        for name in given
    ]
    fill(parts, [*(f"{part}: missing" for part in PARTS if part not in given), *others])


def to_official(model: Jepa, target: Encoder) -> dict[str, Weights]:
    """Student and target in this layout, without `module.`: `load_official` gives them back.

    Where the model has no mask token, zeros stand for it: their code holds one. CheckpointError
    for weights that the layout has no place for.
    """
    own = model.predictor.state_dict()
    homeless = [n for n in own if of_positions(f"predictor.{n}") and n != MASK_TOKEN]
    if homeless:
        raise CheckpointError(f"the official layout has no place for {', '.join(homeless)}")
    predictor = renamed(own, predictor_theirs)
    predictor.setdefault(MASK_TOKEN, torch.zeros(1, 1, len(own["embed.weight"])))
    return {
        "encoder": renamed(model.encoder.state_dict(), encoder_theirs),
        "predictor": predictor,
        "target_encoder": renamed(target.state_dict(), encoder_theirs),
    }


def write_official(trained: Trained, path: Path) -> float:
    """Write a run's weights in this layout; the largest difference of features once read back.

    CheckpointError for what the layout cannot mean, ExportFailed where other weights are read.
    """
    spec = trained.spec
    if spec.objective.kind != "ijepa":
        raise CheckpointError(
            f"the official layout holds I-JEPA and StoP alone, no objective {spec.objective.kind!r}"
        )
    if isinstance(spec.positions, PluginPositions):
        raise CheckpointError(
            f"the official layout knows no positions of the plug-in {spec.positions.kind!r}"
        )
    torch.save(to_official(trained.model, trained.target), path)
    model = build_model(spec)
    target = target_of(model.encoder)
    copy_official(model, target, torch.load(path, map_location="cpu", weights_only=True))
    for own, read in ((trained.model, model), (trained.target, target)):
        there = read.state_dict()
        if unlike := [n for n, v in own.state_dict().items() if not torch.equal(v, there[n])]:
            raise ExportFailed(f"official: other weights are read back: {', '.join(unlike)}")
    images = probe_images(spec.data.image_size)
    with torch.no_grad():
        return held(target.features(images), trained.target.features(images), "official", EXACT)


def _named(given: Any) -> dict[str, Any]:
    return without(DDP, given) if isinstance(given, Mapping) else {}


def _holds_weights(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, Mapping) and has_tensors(value))


def _mask_token_faults(model: Jepa, trained: bool | None) -> list[str]:
    reads = model.predictor.mask_token is not None
    if reads and trained is False:
        return [
            f"predictor: {MASK_TOKEN} was never trained, as in StoP's code, which does not read "
            "it: set positions.parametrization to official"
        ]
    if reads and trained is None:
        log.warning(
            "the file does not tell whether its %s was ever trained: I-JEPA's code reads it, "
            "StoP's does not (for that, set positions.parametrization to official)",
            MASK_TOKEN,
        )
    if not reads and trained:
        log.warning("the file's %s is left out: these positions read none", MASK_TOKEN)
    return []


def _mask_token_trained(state: Mapping[str, Any], predictor: Mapping[str, Any]) -> bool | None:
    """Whether training moved the mask token: AdamW remembers what had a gradient.

    Their second group of parameters holds the predictor's weights with weight decay, in the order
    of its state dict. None where the file keeps no such memory.
    """
    decayed = [
        name
        for name, value in predictor.items()
        if isinstance(value, Tensor) and "bias" not in name and value.ndim != 1
    ]
    try:
        numbers = state["opt"]["param_groups"][1]["params"]
        remembered = state["opt"]["state"]
        if len(numbers) != len(decayed) or not remembered:
            return None
        return numbers[decayed.index(MASK_TOKEN)] in remembered
    except (KeyError, IndexError, TypeError, ValueError):
        return None
