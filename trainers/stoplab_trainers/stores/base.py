"""The contract of a place where checkpoints lie, and what all such places share."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

import torch

from stoplab_platform.errors import CheckpointError

Manifest = dict[str, Any]
"""What a checkpoint says of itself: format, step, identity, sha256 and size of its state."""


class Broken(CheckpointError):
    """A checkpoint is not whole; an older one may be."""


class Store(ABC):
    """Checkpoints by name, each a state and a manifest. One process writes, any number reads.

    A checkpoint is there once `write` has returned, and neither a kill at any moment nor a place
    that fails leaves a part of one under its name. Places that do not answer raise `DataAway`,
    those that refuse `DataError`.
    """

    @abstractmethod
    def names(self) -> list[str]:
        """Of all checkpoints that are there, broken ones too; in no order."""

    @abstractmethod
    def write(self, name: str, tensors: Mapping[str, Any], told: Manifest) -> None:
        """Make a checkpoint that is not there yet; ``told`` is what its manifest says beside the
        state's sha256 and size. OSError where a disk is full."""

    @abstractmethod
    def manifest(self, name: str) -> Manifest:
        """What a checkpoint says of itself; Broken where that cannot be read."""

    @abstractmethod
    def state(self, name: str, told: Manifest) -> AbstractContextManager[Path]:
        """The state as a file of this machine while the block lasts, also where it is removed
        meanwhile, checked by the size and sha256 of its manifest; Broken where it is another. What
        is mapped of it outlives the block."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Take a checkpoint away; a kill meanwhile leaves no part of it under its name."""

    @abstractmethod
    def tidy(self) -> list[str]:
        """Take away what writers that were killed have left; `names`. Only who writes may."""

    @abstractmethod
    def probe(self) -> None:
        """DataError where nothing can be written, before anything is spent."""

    @abstractmethod
    def spelled(self, name: str) -> str:
        """A checkpoint's path or URL."""


def serialise(tensors: Mapping[str, Any], file: IO[bytes]) -> None:
    """torch.save, whose errors are those of the disk where it was the disk."""
    try:
        torch.save(tensors, file)
    except RuntimeError as error:  # closing its archive, torch hides what the disk said
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    file.flush()


def parsed(text: str | bytes, where: str) -> Manifest:
    """A manifest; Broken where the text is none."""
    try:
        told: Manifest = json.loads(text)
        if isinstance(told["sha256"], str) and isinstance(told["size"], int):
            return told
    except (ValueError, KeyError, TypeError) as error:
        raise Broken(f"{where} is no manifest: {error!r}") from error
    raise Broken(f"{where} is no manifest: {told}")


def path_of(file: IO[bytes]) -> Path:
    """An open file's path, also of one whose name is gone."""
    return Path(f"/dev/fd/{file.fileno()}")


def sha256_of(path: Path) -> str:
    """Of a file's content (hex)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
