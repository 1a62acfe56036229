"""Checkpoints in an object store, by fsspec: no rename there, but each object appears whole.

    URL/step-00000120/state-8f14e45fceea167a.pt, then URL/step-00000120/manifest.json

The manifest is written last, and only it makes a checkpoint. A state is named after its content,
and the manifest names it: two writers of one step (an attempt that does not know yet that it was
replaced) do not mix theirs. A state that no manifest names does not exist.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from stoplab_platform.errors import DataError, DataMissing
from stoplab_platform.paths import CHECKPOINT_MANIFEST as MANIFEST
from stoplab_platform.remote import WANTED, Options, Remote, copied
from stoplab_trainers.data.cache import locked, make_room, replacing
from stoplab_trainers.stores.base import (
    Broken,
    Manifest,
    Store,
    parsed,
    path_of,
    serialise,
    sha256_of,
)

PROBE = "probe"
DIGITS = 16  # of a state's sha256, in its name


class Objects(Store):
    """A prefix of an object store; ``cache`` is a folder of this machine's own disk.

    There lies, while it is written or read, one state as a file: a writer's has no name, so that
    nothing is left of it; a reader's is shared by the processes of the machine.
    """

    def __init__(self, url: str, options: Options, cache: Path, budget: int | None = None) -> None:
        self._url, self._options = url.rstrip("/"), options
        self._cache, self._budget = cache, budget

    def names(self) -> list[str]:
        """Those that have a manifest."""
        return [name for name, files in self._listed().items() if MANIFEST in files]

    def write(self, name: str, tensors: Mapping[str, Any], told: Manifest) -> None:
        """State, then manifest."""
        drafts = self._cache / "checkpoints"
        drafts.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=drafts) as file:
            serialise(tensors, file)
            path = path_of(file)
            sha256, size = sha256_of(path), path.stat().st_size
            state = f"state-{sha256[:DIGITS]}.pt"
            self._at(name, state).put(path)
        whole = {**told, "sha256": sha256, "size": size, "state": state}
        self._at(name, MANIFEST).write(json.dumps(whole, indent=1).encode())

    def manifest(self, name: str) -> Manifest:
        """From its object."""
        place = self._at(name, MANIFEST)
        try:
            told = parsed(place.read(), place.name)
        except DataMissing as error:
            raise Broken(f"{place.name} is missing") from error
        if not isinstance(told.get("state"), str) or "/" in told["state"]:
            raise Broken(f"{place.name} is no manifest: it names no state")
        return told

    @contextmanager
    def state(self, name: str, told: Manifest) -> Iterator[Path]:
        """A copy in the cache, which goes when the first process of this machine has read it."""
        key = hashlib.sha256(self.spelled(name).encode()).hexdigest()[:DIGITS]
        copy = self._cache / "checkpoints" / f"{key}-{told['sha256']}.pt"
        with locked(copy.with_name(key)):  # others wait here while one fetches it
            if not copy.exists():
                self._fetch(name, told, copy)
            file = copy.open("rb")
        try:
            with file:
                yield path_of(file)
        finally:
            with locked(copy.with_name(key)):  # not while another is about to open it
                copy.unlink(missing_ok=True)  # who has it open reads on

    def remove(self, name: str) -> None:
        """The manifest first: what is left of a removal that is cut off does not exist."""
        for file in sorted(Remote(self.spelled(name), self._options).below()):
            self._at(name, file).remove()

    def tidy(self) -> list[str]:
        """States that no manifest names."""
        there = self._listed()
        for name, files in there.items():
            for file in self._unnamed(name, files):
                self._at(name, file).remove()
        return [name for name, files in there.items() if MANIFEST in files]

    def probe(self) -> None:
        """By an object that comes, is read and listed, and goes: a resume needs all of it."""
        place = Remote(f"{self._url}/{PROBE}", self._options)
        place.write(PROBE.encode())
        if place.read() != PROBE.encode() or PROBE not in Remote(self._url, self._options).below():
            raise DataError(f"{place.name} was written, and is not there: no place for checkpoints")
        place.remove()

    def spelled(self, name: str) -> str:
        """Its URL."""
        return f"{self._url}/{name}"

    def _at(self, name: str, file: str) -> Remote:
        return Remote(f"{self.spelled(name)}/{file}", self._options)

    def _listed(self) -> dict[str, list[str]]:
        """Files of each name."""
        found: dict[str, list[str]] = {}
        for path in Remote(self._url, self._options).below():
            name, _, file = path.partition("/")
            if file:
                found.setdefault(name, []).append(file)
        return found

    def _unnamed(self, name: str, files: list[str]) -> set[str]:
        """Of its files those that are no part of it."""
        if MANIFEST not in files:
            return set(files)
        if len(files) <= 2:
            return set()
        try:
            return set(files) - {MANIFEST, self.manifest(name)["state"]}
        except Broken:
            return set()

    def _fetch(self, name: str, told: Manifest, copy: Path) -> None:
        place, size = self._at(name, told["state"]), told["size"]
        try:
            if (there := place.size()) != size:
                raise Broken(f"{place.name} has {there} bytes, not {size}")
            with replacing(copy) as file:
                make_room(self._cache, file, size, self._budget)
                if copied(place, size, file, WANTED) != told["sha256"]:
                    raise Broken(f"{place.name} does not match its checksum")
        except DataMissing as error:
            raise Broken(f"{place.name} is missing") from error
