"""`model.init_from`: weights to start from, whoever trained them.

What it may name: one of our checkpoints or a run's folder (its newest checkpoint), by path, job or
run in MLflow; a checkpoint file of the I-JEPA or StoP repositories; or a ViT encoder in timm's
names (safetensors or torch). A file may also be a URL. What was loaded is known by its sha256,
which enters the run's digest.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file

from stoplab_platform.errors import CheckpointError, DataError, NotFound, Problem, SpecError
from stoplab_platform.references import referred
from stoplab_platform.settings import Settings
from stoplab_platform.specs.weights import CheckpointRef, Start
from stoplab_trainers import checkpoint
from stoplab_trainers.data.urls import local_copy
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import Jepa
from stoplab_trainers.weights.fitting import Part, fill, fixed_tables
from stoplab_trainers.weights.foreign import adapted, encoder_in
from stoplab_trainers.weights.names import encoder_theirs
from stoplab_trainers.weights.official import is_official, load_official

log = logging.getLogger("stoplab.weights")

FIELD = ("model", "init_from")
SAFETENSORS = ".safetensors"
OTHER_POSITIONS = (
    "pos_embed is no sin-cos table, which encoders here have; to start without it, give "
    "model.init_from as {path: …, other_positions: leave_out}"
)


@dataclass(frozen=True)
class Source:
    """Weights as they were found.

    Attributes:
        layout: `checkpoint` is ours, `official` that of the I-JEPA and StoP repositories,
            `encoder` timm's state dict of an encoder alone.
        sha256: of the file that holds them (hex).
        weights: the file's content, of an encoder its state dict.
    """

    layout: Literal["checkpoint", "official", "encoder"]
    sha256: str
    weights: Mapping[str, Any]


def start_from(start: Start, model: Jepa, target: Encoder, storage: str | None = None) -> Source:
    """Copy the weights that a spec's `model.init_from` names into student and target.

    From an encoder alone both encoders start, and the predictor from its own init. The position
    tables are computed, so the image may have another size. ``storage`` is the spec's
    `data.storage`. Raises SpecError, naming the field and every key that is unknown, missing or
    misshapen, and DataMissing where nothing is there.
    """
    try:
        source = opened(start, storage)
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
                _load_encoder(start, model.encoder, source.weights)
                target.load_state_dict(model.encoder.state_dict())
    except (CheckpointError, NotFound) as error:
        raise SpecError([Problem(FIELD, f"{start.spelled}: {error}")]) from error
    except DataError as error:  # on this machine, perhaps on no other
        raise type(error)(f"{'.'.join(FIELD)} on {platform.node()}: {error}") from error
    return source


def opened(ref: CheckpointRef, storage: str | None = None) -> Source:
    """The weights that are meant. Raises CheckpointError, NotFound, DataError, DataMissing."""
    settings = Settings()
    if ref.path is None:
        return _of_run(ref, settings)
    path = local_copy(ref.path, settings.folders.cache, storage)
    if path.is_dir():
        return _of_run(CheckpointRef(path=str(path)), settings)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    content = _read(path)
    if is_official(content):
        return Source("official", sha256, content)
    if encoder := encoder_in(content):
        return Source("encoder", sha256, encoder)
    names = ", ".join(sorted(map(str, content))[:10]) or "nothing"
    raise CheckpointError(
        f"holds {names}: neither a checkpoint with encoder, predictor and target_encoder, nor an "
        "encoder's state dict"
    )


def _of_run(ref: CheckpointRef, settings: Settings) -> Source:
    found = referred(ref, settings)
    return checkpoint.meant(found.run, found.checkpoint, _own)


def _own(saved: checkpoint.Saved) -> Source:
    _, state = checkpoint.load_weights(saved)
    return Source("checkpoint", checkpoint.manifest(saved)["sha256"], state)


def _load_encoder(start: Start, encoder: Encoder, given: Mapping[str, Any]) -> None:
    found = adapted(given)
    refused = found.other_positions and start.other_positions == "refuse"
    fill(
        [Part("encoder", encoder, found.weights, encoder_theirs, fixed_tables(encoder))],
        [f"encoder: {OTHER_POSITIONS}"] if refused else [],
    )
    if found.left_out:
        log.warning("%s: left out %s", start.spelled, ", ".join(found.left_out))
    if found.other_positions:
        log.warning("the encoder has sin-cos positions, and was not trained with them")


def _read(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == SAFETENSORS:
            return load_file(path)
        # Mapped, where the format allows: an optimiser's state is never read.
        mapped = zipfile.is_zipfile(path)
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # whatever a file that is something else leads the readers to
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"is no file of weights that can be read safely: {reason}") from error
    if not isinstance(found, Mapping):
        raise CheckpointError(f"holds a {type(found).__name__}, not weights by name")
    return found
