"""Checkpoints in a folder: each a folder of its own, which appears by rename.

    step-00000120/state.pt, step-00000120/manifest.json

Everything in it is on the disk before its name is.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from uuid import uuid4

from stoplab_platform.errors import DataError
from stoplab_platform.paths import CHECKPOINT_MANIFEST as MANIFEST
from stoplab_trainers.stores.base import Broken, Manifest, Store, parsed, serialise, sha256_of

STATE = "state.pt"


class Local(Store):
    """A folder of this machine, or of a file system that all nodes see."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Of its folders."""
        return [path.name for path in self._folder.glob("step-*")]

    def write(self, name: str, tensors: Mapping[str, Any], told: Manifest) -> None:
        """A draft beside it, then the rename."""
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._folder / f".{name}.{uuid4().hex[:8]}"
        draft.mkdir()
        try:
            _fill(draft, tensors, told)
            draft.rename(self._folder / name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        _sync(self._folder)

    def manifest(self, name: str) -> Manifest:
        """From its file."""
        path = self._folder / name / MANIFEST
        try:
            return parsed(path.read_bytes(), str(path))
        except FileNotFoundError as error:
            raise Broken(f"{error.filename} is missing") from error

    @contextmanager
    def state(self, name: str, told: Manifest) -> Iterator[Path]:
        """As it lies there."""
        path = self._folder / name / STATE
        try:
            size = path.stat().st_size
            if size != told["size"]:
                raise Broken(f"{path} has {size} bytes, not {told['size']}")
            if sha256_of(path) != told["sha256"]:
                raise Broken(f"{path} does not match its checksum")
        except FileNotFoundError as error:
            raise Broken(f"{error.filename} is missing") from error
        yield path

    def remove(self, name: str) -> None:
        """The folder."""
        shutil.rmtree(self._folder / name)

    def tidy(self) -> None:
        """Drafts."""
        for left in self._folder.glob(".step-*"):
            shutil.rmtree(left, ignore_errors=True)

    def probe(self) -> None:
        """By a file without a name."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=self._folder).close()
        except OSError as error:
            raise DataError(f"{self._folder} cannot be written: {error}") from error

    def spelled(self, name: str) -> str:
        """Its path."""
        return str(self._folder / name)


def _fill(draft: Path, tensors: Mapping[str, Any], told: Manifest) -> None:
    path = draft / STATE
    with path.open("wb") as file:
        serialise(tensors, file)
        os.fsync(file.fileno())
    whole = {**told, "sha256": sha256_of(path), "size": path.stat().st_size}
    with (draft / MANIFEST).open("w") as text:
        json.dump(whole, text, indent=1)
        text.flush()
        os.fsync(text.fileno())
    _sync(draft)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
