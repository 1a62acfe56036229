"""Checkpoints: whole or not there, checked by their own manifest, kept by number.

A checkpoint is a folder `step-00000120/` with `state.pt` (torch.save of tensors and plain data)
and `manifest.json` (its sha256 and size, the step, whose it is). It appears by rename, after
everything in it is on the disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from stoplab_platform.errors import CheckpointError
from stoplab_platform.paths import CHECKPOINT_MANIFEST as MANIFEST
from stoplab_platform.paths import RunFolder

log = logging.getLogger("stoplab.checkpoint")

FORMAT = 1
STATE = "state.pt"
WEIGHTS = ("model", "target")
"""Of a run's state."""


def save(
    folder: Path, *, step: int, tensors: dict[str, Any], identity: Mapping[str, str], keep: int
) -> Path:
    """Write the checkpoint of a step below ``folder``, keep the newest ``keep``; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".step-*"):  # by a writer that was killed
        shutil.rmtree(left, ignore_errors=True)
    path = folder / f"step-{step:08d}"
    if path.exists():
        if _fault(path) is None:
            return path
        shutil.rmtree(path)
    draft = folder / f".{path.name}.{uuid4().hex[:8]}"
    draft.mkdir()
    try:
        _write(draft, step, tensors, identity)
        draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _sync_folder(folder)
    _retain(folder, step, keep)
    return path


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint, None where there is none at all.

    A broken one is passed over with a warning; CheckpointError when all are broken, so that a
    run never starts again at step 0 without being told to.
    """
    broken = []
    for path in _newest_first(folder):
        fault = _fault(path)
        if fault is None:
            return path
        log.warning("checkpoint passed over: %s", fault)
        broken.append(fault)
    if broken:
        raise CheckpointError(
            f"every checkpoint in {folder} is broken; move them away to start anew:\n  "
            + "\n  ".join(broken)
        )
    return None


def sound(folder: Path) -> Path | None:
    """The newest whole checkpoint whose weights are all numbers, None where there is none."""
    for path in _newest_first(folder):
        try:
            _, weights = load_weights(path)
        except CheckpointError:
            continue
        if all(value.isfinite().all() for part in weights.values() for value in part.values()):
            return path
    return None


def meant(run: RunFolder, named: Path | None = None) -> Path:
    """The checkpoint that was named, else the run's newest.

    CheckpointError where there is none, or none is whole.
    """
    path = named or latest(run.checkpoints)
    if path is None:
        raise CheckpointError(f"no checkpoint in {run.root}")
    return path


def load(path: Path, *, identity: Mapping[str, str] | None) -> tuple[int, dict[str, Any]]:
    """Step and state of a checkpoint, on the CPU.

    CheckpointError where it is broken, or belongs to another run than ``identity`` (None: any).
    """
    return _loaded(path, identity, mapped=False)


def load_weights(path: Path) -> tuple[int, dict[str, Any]]:
    """Step and weights (`model`, `target`) of a checkpoint of any run; CheckpointError.

    They are mapped from the file, and the optimiser's state is never read: copy them before the
    file may go.
    """
    step, state = _loaded(path, None, mapped=True)
    return step, {name: state[name] for name in WEIGHTS}


def _loaded(
    path: Path, identity: Mapping[str, str] | None, *, mapped: bool
) -> tuple[int, dict[str, Any]]:
    fault = _fault(path)
    if fault is not None:
        raise CheckpointError(fault)
    told = manifest(path)
    if identity is not None and told["identity"] != dict(identity):
        raise CheckpointError(
            f"{path} belongs to {_spelled(told['identity'])}, "
            f"this run is {_spelled(dict(identity))}"
        )
    try:
        state = torch.load(path / STATE, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise CheckpointError(f"{path} holds what cannot be loaded: {error}") from error
    return int(told["step"]), state


def manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself: format, step, identity, sha256 and size of its state."""
    told: dict[str, Any] = json.loads((path / MANIFEST).read_text())
    return told


def weights_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """The sha256 (hex) of names, types, shapes and values; the order does not matter."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        value = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _write(draft: Path, step: int, tensors: dict[str, Any], identity: Mapping[str, str]) -> None:
    with (draft / STATE).open("wb") as file:
        try:
            torch.save(tensors, file)
        except RuntimeError as error:  # closing its archive, torch hides what the disk said
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        file.flush()
        os.fsync(file.fileno())
    told = {
        "format": FORMAT,
        "step": step,
        "identity": dict(identity),
        "sha256": _sha256(draft / STATE),
        "size": (draft / STATE).stat().st_size,
    }
    with (draft / MANIFEST).open("w") as text:
        json.dump(told, text, indent=1)
        text.flush()
        os.fsync(text.fileno())
    _sync_folder(draft)


def _retain(folder: Path, step: int, keep: int) -> None:
    """Delete what is older than the newest ``keep``, never the one just written.

    A later step can only be there when it was broken and the run went back behind it.
    """
    older = []
    for path in _newest_first(folder):
        if _step_of(path) <= step:
            older.append(path)
        elif _fault(path) is not None:
            shutil.rmtree(path)
    for path in older[keep:]:
        shutil.rmtree(path)


def _newest_first(folder: Path) -> Iterator[Path]:
    found = [path for path in folder.glob("step-*") if path.name[5:].isdigit()]
    yield from sorted(found, key=_step_of, reverse=True)


def _step_of(path: Path) -> int:
    return int(path.name[5:])


def _fault(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted, None if it can."""
    try:
        told = manifest(path)
        size = (path / STATE).stat().st_size
        if size != told["size"]:
            return f"{path / STATE} has {size} bytes, not {told['size']}"
        if _sha256(path / STATE) != told["sha256"]:
            return f"{path / STATE} does not match its checksum"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (ValueError, KeyError) as error:
        return f"{path / MANIFEST} is no manifest: {error!r}"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _spelled(identity: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(identity.items())) or "no run"
