"""Checkpoints in a folder: each a folder of its own, which appears by rename.

    step-00000120/state.pt, step-00000120/manifest.json

Everything in it is on the disk before its name is.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from errno import EEXIST, ENOTEMPTY
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from uuid import uuid4

from stoplab_platform.errors import DataError
from stoplab_platform.paths import CHECKPOINT_MANIFEST as MANIFEST
from stoplab_trainers.stores.base import (
    Broken,
    Manifest,
    Store,
    parsed,
    path_of,
    serialise,
    sha256_of,
)

log = logging.getLogger("stoplab.checkpoint")

STATE = "state.pt"


class Local(Store):
    """A folder of this machine, or of a file system that all nodes see."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """Of its folders."""
        return [name for name in self._folders() if not name.startswith(".")]

    def write(self, name: str, tensors: Mapping[str, Any], told: Manifest) -> None:
        """A draft beside it, then the rename."""
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = self._draft(name)
        draft.mkdir()
        try:
            _fill(draft, tensors, told)
            draft.rename(self._folder / name)
        except OSError as error:  # by an attempt that does not know yet that it was replaced
            if error.errno not in (EEXIST, ENOTEMPTY):
                raise
            log.warning("%s was written by another process meanwhile", self.spelled(name))
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
            file = path.open("rb")
        except FileNotFoundError as error:
            raise Broken(f"{error.filename} is missing") from error
        with file:
            opened = path_of(file)
            size = opened.stat().st_size
            if size != told["size"]:
                raise Broken(f"{path} has {size} bytes, not {told['size']}")
            if sha256_of(opened) != told["sha256"]:
                raise Broken(f"{path} does not match its checksum")
            yield opened

    def remove(self, name: str) -> None:
        """The folder: first its name. On NFS the rest stays while somebody reads it."""
        draft = self._draft(name)
        (self._folder / name).rename(draft)
        shutil.rmtree(draft, ignore_errors=True)

    def tidy(self) -> list[str]:
        """Drafts."""
        for name in self._folders():
            if name.startswith(".step-"):
                shutil.rmtree(self._folder / name, ignore_errors=True)
        return self.names()

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

    def _draft(self, name: str) -> Path:
        """A hidden name beside it, which `tidy` knows."""
        return self._folder / f".{name}.{uuid4().hex[:8]}"

    def _folders(self) -> list[str]:
        """Hidden ones too. OSError where they cannot be listed (which `glob` takes for none)."""
        try:
            with os.scandir(self._folder) as entries:
                return [entry.name for entry in entries if entry.is_dir()]
        except FileNotFoundError:
            return []


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
