"""Shards of all kinds as plain tars on this machine: as they lie, unpacked, or fetched.

`Shard.path` makes the copy when it is not there: once for all processes that share the cache.
Copies go again when the cache is short of room (`cache.make_room`).
"""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import zlib
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from threading import Event
from typing import IO, Any, BinaryIO

from stoplab_platform.errors import DataError
from stoplab_platform.remote import WANTED, Options, Remote, copied
from stoplab_trainers.data.cache import again, locked, make_room, note_use, replacing
from stoplab_trainers.data.index import ShardIndex, index_of
from stoplab_trainers.data.listing import ListedShard

log = logging.getLogger("stoplab.data")

CHUNK = 1 << 20
ROOM, MOST_GROWTH = 64 << 20, 100  # images hardly shrink; gzip can grow a file by 1,032
STAMPS = (
    "ETag", "etag", "mtime", "LastModified", "last_modified", "created",
    "Last-Modified", "Content-MD5", "Digest",
)  # fmt: skip
PACKED = (".gz", ".tgz")


class WrongFile(DataError):
    """A file is not the one that its index.json names."""


class Shard:
    """One shard of a spec: a plain tar of this machine, unless a subclass says otherwise."""

    def __init__(self, name: str, cache: Path, listed: ListedShard | None = None) -> None:
        self.name, self.listed = name, listed
        self._cache = cache

    def identity(self) -> str:
        """Something that changes whenever the shard does."""
        return _stamp(Path(self.name))

    def takes(self) -> int:
        """Bytes that it takes of the cache."""
        return 0

    def path(self, given_up: Event = WANTED) -> Path:
        """The plain tar; DataError where it cannot be had as it should be, DataAway where not now.

        ``given_up``: once it is set nobody waits for it any more.
        """
        return Path(self.name)

    def check(self) -> None:
        """DataError where one look at the file tells that it is not as listed."""
        size = Path(self.name).stat().st_size
        if self.listed and size != self.listed.bytes:
            raise DataError(
                f"{self.name} has {size} bytes, and its index.json says {self.listed.bytes}: it "
                "was not copied to its end, or one of them is old"
            )

    def index(self) -> ShardIndex:
        """What it holds; DataError where that is not what its listing says."""
        found = index_of(self.identity(), self.path, self.name, self._cache)
        listed = self.listed
        if listed and (listed.digest, listed.samples) != (found.digest, len(found.keys)):
            raise DataError(
                f"{self.name} does not hold what its index.json says: put the shard back, or make "
                "the index anew (stoplab shards index)"
            )
        return found


class Packed(Shard):
    """A `.tar.gz` of this machine: unpacked into the cache, by its checksum."""

    def __init__(
        self, name: str, cache: Path, listed: ListedShard | None, budget: int | None
    ) -> None:
        super().__init__(name, cache, listed)
        self._budget = budget

    def takes(self) -> int:
        """The size of the packed file: images hardly shrink."""
        return Path(self.name).stat().st_size

    @again
    def path(self, given_up: Event = WANTED) -> Path:
        """The unpacked tar."""
        plain = self._cache / "unpacked" / f"{self._checksum}.tar"
        if not plain.exists():
            with locked(plain):
                if not plain.exists():
                    with Path(self.name).open("rb") as file, replacing(plain) as target:
                        make_room(self._cache, target, self.takes(), self._budget)
                        _unpack(self.name, file, target)
        note_use(plain)
        return plain

    @cached_property
    def _checksum(self) -> str:
        stamp = hashlib.sha256(_stamp(Path(self.name)).encode()).hexdigest()
        note = self._cache / "unpacked" / f"{stamp}.sha256"
        if note.exists():
            return note.read_text()
        with Path(self.name).open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        _compare(self, checksum)
        with replacing(note) as file:
            file.write(checksum.encode())
        return checksum


class Fetched(Shard):
    """A shard behind a URL: copied into the cache, once for each of its versions."""

    def __init__(
        self,
        name: str,
        cache: Path,
        listed: ListedShard | None,
        budget: int | None,
        options: Options,
    ) -> None:
        super().__init__(name, cache, listed)
        self._remote, self._budget = Remote(name, options), budget
        self._file = name.partition("?")[0].rpartition("/")[2]

    def identity(self) -> str:
        """The checksum that it should have, or else what its place tells of its version."""
        if self.listed:
            return f"sha256\0{self.listed.sha256}"
        version = [str(self._info[stamp]) for stamp in STAMPS if self._info.get(stamp)]
        return "\0".join([self.name, str(self._info.get("size")), *version])

    def takes(self) -> int:
        """Bytes to fetch; 0 where its place does not tell."""
        return self.listed.bytes if self.listed else self._info.get("size") or 0

    @again
    def path(self, given_up: Event = WANTED) -> Path:
        """The copy, unpacked if need be."""
        version = hashlib.sha256(self.identity().encode()).hexdigest()
        copy = self._cache / "remote" / version / self._file.removesuffix(".gz")
        if not copy.exists():
            with locked(copy.parent):
                if not copy.exists():
                    self._fetch(copy, given_up)
        note_use(copy)
        return copy

    def check(self) -> None:
        """Nothing: its checksum is looked at when it is fetched."""

    @cached_property
    def _info(self) -> dict[str, Any]:
        return self._remote.info()

    def _fetch(self, copy: Path, given_up: Event) -> None:
        try:
            self._fetch_once(copy, given_up)
        except WrongFile as error:  # it may have been the way
            log.warning("%s; it is fetched once more", error)
            self._fetch_once(copy, given_up)

    def _fetch_once(self, copy: Path, given_up: Event) -> None:
        log.info("fetching %s (%d bytes)", self.name, self.takes())
        if self.listed:  # before parts are asked for that are not there
            size = self._remote.info().get("size")
            if size not in (None, self.listed.bytes):
                raise WrongFile(
                    f"{self.name} has {size} bytes, and its index.json says {self.listed.bytes}"
                )
        with replacing(copy) as target:
            make_room(self._cache, target, self.takes(), self._budget)
            if not self._file.endswith(PACKED):
                _compare(self, copied(self._remote, self.takes() or None, target, given_up))
                return
            with TemporaryFile(dir=copy.parent) as packed:
                _compare(self, copied(self._remote, self.takes() or None, packed, given_up))
                packed.seek(0)
                _unpack(self.name, packed, target)


def shard_of(
    name: str, cache: Path, listed: ListedShard | None, budget: int | None, options: Options
) -> Shard:
    """The shard of a path or URL."""
    if "://" in name:
        return Fetched(name, cache, listed, budget, options)
    if name.endswith(PACKED):
        return Packed(name, cache, listed, budget)
    return Shard(name, cache, listed)


def _stamp(path: Path) -> str:
    stamp = path.stat()
    return f"{path.resolve()}\0{stamp.st_size}\0{stamp.st_mtime_ns}"


def _compare(shard: Shard, checksum: str) -> None:
    if shard.listed and checksum != shard.listed.sha256:
        raise WrongFile(
            f"{shard.name} has the sha256 {checksum}, and its index.json says {shard.listed.sha256}"
        )


def _unpack(name: str, packed: IO[bytes], target: BinaryIO) -> None:
    most = ROOM + MOST_GROWTH * os.fstat(packed.fileno()).st_size
    try:
        with gzip.open(packed, "rb") as source:
            while data := source.read(CHUNK):
                if target.tell() + len(data) > most:
                    raise DataError(f"{name} unpacks to more than {most} bytes: it is no shard")
                target.write(data)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{name} cannot be unpacked: {error}") from error
    target.truncate()
