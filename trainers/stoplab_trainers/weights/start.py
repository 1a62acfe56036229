"""`model.init_from`: weights to start from, whoever trained them.

What it may name: one of our checkpoints or a run's folder (its newest checkpoint), a checkpoint
file of the I-JEPA or StoP repositories, or an encoder in timm's layout (safetensors or torch); a
file may also be a URL. What was loaded is known by its sha256, which enters the run's digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from stoplab_platform.errors import CheckpointError, NotFound, Problem, SpecError
from stoplab_platform.references import referred
from stoplab_platform.settings import Settings
from stoplab_platform.specs.evaluation import CheckpointRef
from stoplab_trainers import checkpoint
from stoplab_trainers.data.urls import local_copy
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import Jepa
from stoplab_trainers.weights.fitting import Part, fill, fixed_tables
from stoplab_trainers.weights.names import encoder_theirs
from stoplab_trainers.weights.official import is_official, load_official, without_ddp

FIELD = ("model", "init_from")
SAFETENSORS = ".safetensors"


@dataclass(frozen=True)
class Source:
    """Weights as they were found.

    Attributes:
        layout: `checkpoint` is ours, `official` that of the I-JEPA and StoP repositories,
            `encoder` timm's state dict of an encoder alone.
        sha256: of the file that holds them (hex).
        weights: the file's content.
    """

    layout: Literal["checkpoint", "official", "encoder"]
    sha256: str
    weights: Mapping[str, Any]


def start_from(place: str, model: Jepa, target: Encoder) -> Source:
    """Copy the weights that a spec's `model.init_from` names into student and target.

    From an encoder alone both encoders start, and the predictor from its own init. The position
    tables are computed, so the image may have another size. Raises SpecError, naming the field and
    every key that is unknown, missing or misshapen, and DataMissing where nothing is there.
    """
    try:
        source = opened(place)
        tables = fixed_tables(model.encoder)
        match source.layout:
            case "official":
                load_official(model, target, source.weights)
            case "checkpoint":
                fill(
                    [
                        Part("model", model, source.weights["model"], str, fixed_tables(model)),
                        Part("target", target, source.weights["target"], str, tables),
                    ]
                )
            case "encoder":
                given = without_ddp(source.weights)
                fill([Part("encoder", model.encoder, given, encoder_theirs, tables)])
                target.load_state_dict(model.encoder.state_dict())
    except (CheckpointError, NotFound) as error:
        raise SpecError([Problem(FIELD, f"{place}: {error}")]) from error
    return source


def opened(place: str) -> Source:
    """The weights at a path or URL. Raises CheckpointError, NotFound, DataError, DataMissing."""
    path = local_copy(place, Settings().folders.cache)
    if path.is_dir():
        found = referred(CheckpointRef(path=str(path)), Settings())
        newest = checkpoint.meant(found.run, found.checkpoint)
        _, state = checkpoint.load(newest, identity=None)
        return Source("checkpoint", checkpoint.manifest(newest)["sha256"], state)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    weights = _read(path)
    if is_official(weights):
        return Source("official", sha256, weights)
    if any(isinstance(value, Tensor) for value in weights.values()):
        return Source("encoder", sha256, weights)
    names = ", ".join(sorted(map(str, weights))[:10]) or "nothing"
    raise CheckpointError(
        f"holds {names}: neither a checkpoint with encoder, predictor and target_encoder, nor an "
        "encoder's state dict"
    )


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == SAFETENSORS:
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a file that is something else leads the readers to
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"is no file of weights that can be read safely: {reason}") from error
    if not isinstance(found, Mapping):
        raise CheckpointError(f"holds a {type(found).__name__}, not weights by name")
    return found
