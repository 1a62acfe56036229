"""Checkpoints in the layout of the I-JEPA and StoP repositories, both ways.

Their file is a dict with `encoder`, `predictor` and `target_encoder`, each a state dict, with or
without DDP's `module.` before every name; beside them lies what their training needs to go on,
which is not read but for one thing: whether `mask_token` was ever trained. StoP's code holds a mask
token and never reads it (the projection's bias plays that part: our parametrization `official`);
I-JEPA's reads it (our `stoplab`, without noise).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stoplab_platform.errors import CheckpointError
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import Jepa, of_positions
from stoplab_trainers.weights.fitting import Part, fill, fixed_tables
from stoplab_trainers.weights.names import (
    MASK_TOKEN,
    Weights,
    encoder_theirs,
    predictor_theirs,
    renamed,
)

log = logging.getLogger("stoplab.weights")

PARTS = ("encoder", "predictor", "target_encoder")
NOT_READ = ("opt", "scaler", "epoch", "loss", "batch_size", "world_size", "lr")
DDP = "module."


def is_official(state: Mapping[str, Any]) -> bool:
    """Whether a file's content has this layout, whole or in part."""
    return any(isinstance(state.get(part), Mapping) for part in PARTS)


def load_official(model: Jepa, target: Encoder, state: Mapping[str, Any]) -> None:
    """Copy a checkpoint's weights into student and target; positions, which are fixed, stay.

    The grids may differ, so another image size is no fault. CheckpointError names all unknown,
    missing and misshapen keys at once, and a mask token that was never trained where the model
    would read it.
    """
    given = {part: without_ddp(state[part]) for part in PARTS if part in state}
    trained = _mask_token_trained(state, given.get("predictor", {}))
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
    others = [f"{part}: missing" for part in PARTS if part not in state]
    others += [f"{key}: unknown" for key in state if key not in (*PARTS, *NOT_READ)]
    fill(parts, [*others, *_mask_token_faults(model, trained)])


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


def without_ddp(given: Any) -> dict[str, Any]:
    """A state dict without the prefix that DDP puts before all of its names."""
    if not isinstance(given, Mapping):
        return {}
    if all(str(name).startswith(DDP) for name in given):
        return {name.removeprefix(DDP): value for name, value in given.items()}
    return dict(given)


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
