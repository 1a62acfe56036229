"""What a shard holds and where: read once from the tar's headers, then kept in the cache.

A sample is a run of members with one key (their name up to the first dot of its last part): one
image, perhaps a `.cls` with the class index as text, perhaps a `.seg.png` with a class index a
pixel, and others, which are not read. Beside `.jpg`, a `.left.jpg` is no image but one of those.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from stoplab_platform.errors import DataError
from stoplab_trainers.data.cache import again, locked, replacing

VERSION = 4  # raise it when something is refused, or kept, that was not before
IMAGES = frozenset(("jpg", "jpeg", "png", "webp", "bmp", "ppm", "pgm", "tif", "tiff", "gif"))
UNLABELLED = -1
MOST_LABEL = 999_999_999
MASK = "seg.png"
NOTHING = (0, -1)  # place of a member that is not there
MOST_NAMED = 3
READING = Lock()
"""NumPy parses headers as Python, which CPython 3.11 cannot do in several threads (gh-106905)."""
PROBE = 4096  # bytes of each image that go into the digest; they come with its header


@dataclass(frozen=True)
class ShardIndex:
    """One shard's samples, in order. ``labels`` holds UNLABELLED where there is no class."""

    keys: list[str]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    labels: NDArray[np.int64]
    mask_offsets: NDArray[np.int64]
    mask_sizes: NDArray[np.int64]
    """-1 where a sample has no mask."""
    digest: str
    """sha256 (hex) over members' names, sizes, places, classes and first bytes: not over where
    the file lies or what it is called."""


@again
def index_of(identity: str, path: Callable[[], Path], name: str, cache: Path) -> ShardIndex:
    """The index of a shard from the cache, or else from its plain tar, which ``path`` gets.

    ``identity`` changes whenever the shard does.
    """
    known = f"{VERSION}\0{identity}"
    kept = cache / "index" / f"{hashlib.sha256(known.encode()).hexdigest()}.npz"
    index = _kept(kept)
    if index is None:
        with locked(kept):
            index = _kept(kept) or _keep(kept, read_index(path(), name))
    return index


def read_index(path: Path, name: str | None = None) -> ShardIndex:
    """Walk a tar's headers; DataError where it cannot be read, or a sample has no image.

    ``name``: what errors call it.
    """
    walk = _Walk(name or str(path))
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isfile():
                    walk.add(member, file)
            _check_end(walk.name, file, tar.offset)
    except DataError:
        raise
    except PermissionError as error:
        raise DataError(f"{walk.name} cannot be read: {error.strerror}") from error
    except (tarfile.TarError, EOFError, ValueError) as error:  # ValueError: of broken headers
        raise DataError(f"{walk.name} is no readable tar: {error}") from error
    return walk.result()


class _Walk:
    """Gathers samples from members as they come."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._keys: list[str] = []
        self._seen: set[str] = set()
        self._extensions: set[str] = set()  # of the sample's members
        self._images: list[str] = []  # extensions of those that may be the sample's image
        self._places: list[tuple[int, int]] = []  # of the samples' images; size -1: none yet
        self._masks: list[tuple[int, int]] = []
        self._labels: list[int] = []
        self._digest = hashlib.sha256()

    def add(self, member: tarfile.TarInfo, file: BinaryIO) -> None:
        if not is_text(member.name):
            raise DataError(f"{self.name}: the name {member.name!r} is no text")
        folder, slash, base = member.name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if not stem or not dot or (stem.startswith("__") and stem.endswith("__")):
            return  # hidden files, folders' leavings, and webdataset's notes on the whole shard
        if member.issparse():
            raise DataError(f"{self.name}: {member.name} is stored sparse; write the tar anew")
        key, extension = folder + slash + stem, extension.lower()
        if not self._keys or self._keys[-1] != key:
            self._begin(key)
        if extension in self._extensions:
            raise DataError(f"{self.name}: the member {member.name!r} is there twice")
        self._extensions.add(extension)
        self._digest.update(f"{member.name}\0{member.size}\0{member.offset_data}\0".encode())
        if extension == MASK:
            self._masks[-1] = (member.offset_data, member.size)
            self._digest.update(_bytes(file, member, PROBE))
        elif extension.rpartition(".")[2] in IMAGES:
            if extension in IMAGES or not self._images:
                self._places[-1] = (member.offset_data, member.size)
            self._images.append(extension)
            self._digest.update(_bytes(file, member, PROBE))
        elif extension == "cls":
            text = _bytes(file, member, PROBE)
            self._digest.update(text)
            number = re.fullmatch(rb"\s*(\d{1,9})\s*", text)
            self._labels[-1] = int(number[1]) if number else UNLABELLED

    def result(self) -> ShardIndex:
        self._complete()
        if not self._keys:
            raise DataError(f"{self.name} holds no sample")
        places = np.asarray(self._places, dtype=np.int64)
        masks = np.asarray(self._masks, dtype=np.int64)
        return ShardIndex(
            keys=self._keys,
            offsets=places[:, 0],
            sizes=places[:, 1],
            labels=np.asarray(self._labels, dtype=np.int64),
            mask_offsets=masks[:, 0],
            mask_sizes=masks[:, 1],
            digest=self._digest.hexdigest(),
        )

    def _begin(self, key: str) -> None:
        if key in self._seen:
            raise DataError(f"{self.name}: the members of {key!r} do not lie side by side")
        self._seen.add(key)
        self._complete()
        self._extensions.clear()
        self._images.clear()
        self._keys.append(key)
        self._places.append(NOTHING)
        self._masks.append(NOTHING)
        self._labels.append(UNLABELLED)

    def _complete(self) -> None:
        if self._keys and self._places[-1][1] < 0:
            raise DataError(
                f"{self.name}: sample {self._keys[-1]!r} has no image ({', '.join(sorted(IMAGES))})"
            )
        plain = [extension for extension in self._images if extension in IMAGES]
        if len(several := plain or self._images) > 1:
            named = ", ".join(several[:MOST_NAMED])
            raise DataError(
                f"{self.name}: sample {self._keys[-1]!r} has {len(several)} images ({named}); a "
                "name up to its first dot is the key, and each sample has one of its own"
            )


def is_text(name: str) -> bool:
    """Whether a name is UTF-8 without NUL: names are kept as that, joined by NUL."""
    return "\0" not in name and name == name.encode(errors="ignore").decode()


def _check_end(name: str, file: BinaryIO, offset: int) -> None:
    """tarfile takes any broken header for the end; a whole tar ends in zeros."""
    file.seek(offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise DataError(f"{name} is cut short or broken at byte {offset}")
    while (block := file.read(tarfile.BLOCKSIZE)) and not any(block):
        pass
    with suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
        raise DataError(f"{name}: behind its end, at byte {offset}, another tar begins")


def _bytes(file: BinaryIO, member: tarfile.TarInfo, most: int) -> bytes:
    file.seek(member.offset_data)
    return file.read(min(member.size, most))


def _kept(path: Path) -> ShardIndex | None:
    try:
        with READING, np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as data:
            return ShardIndex(
                keys=bytes(data["keys"]).decode().split("\0"),
                offsets=data["offsets"],
                sizes=data["sizes"],
                labels=data["labels"],
                mask_offsets=data["mask_offsets"],
                mask_sizes=data["mask_sizes"],
                digest=str(data["digest"]),
            )
    except (FileNotFoundError, zipfile.BadZipFile, EOFError, KeyError, ValueError):
        return None  # not there, or not whole: made again


def _keep(path: Path, index: ShardIndex) -> ShardIndex:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        keys=np.frombuffer("\0".join(index.keys).encode(), dtype=np.uint8),
        offsets=index.offsets,
        sizes=index.sizes,
        labels=index.labels,
        mask_offsets=index.mask_offsets,
        mask_sizes=index.mask_sizes,
        digest=np.str_(index.digest),
    )
    with replacing(path) as file:
        file.write(buffer.getbuffer())
    return index
