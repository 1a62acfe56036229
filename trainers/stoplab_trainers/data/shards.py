"""A set of images in WebDataset shards, each sample at hand by its number."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import os
from collections import OrderedDict
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from threading import Event, Lock

import numpy as np
from numpy.typing import NDArray

from stoplab_platform.errors import DataError
from stoplab_platform.remote import Options
from stoplab_trainers.data.cache import again
from stoplab_trainers.data.copies import Shard
from stoplab_trainers.data.index import MASK, UNLABELLED, ShardIndex
from stoplab_trainers.data.listing import class_names
from stoplab_trainers.data.urls import check_one_set, shards_of

MOST_OPEN = 128
AT_ONCE = 8  # shards that are looked into, so perhaps fetched, at once


class ShardSet:
    """Samples 0 to len - 1, in the order of the shards and of the members in each.

    A shard that an `index.json` lists is opened, fetched and looked into when a sample of it is
    read first; the others at once, for nobody knows what they hold. Reading is safe from many
    threads: positions are passed to the kernel, none is kept.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = list(shards)
        self._indexes: dict[int, ShardIndex] = {}
        self._open_files: OrderedDict[int, _File] = OrderedDict()
        self._lock = Lock()
        for shard in self._shards:
            shard.check()
        self._look_into([n for n, shard in enumerate(self._shards) if shard.listed is None])
        self.counts = tuple(
            shard.listed.samples if shard.listed else len(self._index(n).keys)
            for n, shard in enumerate(self._shards)
        )
        self._starts = [0, *itertools.accumulate(self.counts)]

    @classmethod
    def open(cls, urls: str | Sequence[str], cache: Path, storage: str | None = None) -> ShardSet:
        """The shards that ``urls`` name; DataError where there are none, or some are missing, or a
        folder holds several sets.

        ``storage``: a reference to the secret that opens remote ones.
        """
        shards = shards_of(urls, cache, storage)
        check_one_set(urls)
        return cls(shards)

    def __len__(self) -> int:
        return self._starts[-1]

    @cached_property
    def keys(self) -> list[str]:
        """The samples' keys."""
        return [key for index in self._every_index() for key in index.keys]

    @cached_property
    def labels(self) -> NDArray[np.int64] | None:
        """The samples' class indices; None unless every sample has one."""
        labels = np.concatenate([index.labels for index in self._every_index()])
        return None if (labels == UNLABELLED).any() else labels

    def class_names(self, options: Options) -> Sequence[str]:
        """In the order of their indices, as the first shard's listing tells them; () if unknown."""
        return class_names(self._shards[0].name, options)

    @property
    def unlabelled(self) -> str | None:
        """The first sample without a class index, if there is one."""
        for shard, index in enumerate(self._every_index()):
            for row in np.flatnonzero(index.labels == UNLABELLED)[:1]:
                return self.name(self._starts[shard] + int(row))
        return None

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of what the shards hold, in order, wherever they lie."""
        return hashlib.sha256("\n".join(self._digests).encode()).hexdigest()

    def shared_with(self, other: ShardSet) -> int:
        """How many of the samples lie in a shard that ``other`` has too, wherever that lies."""
        known = set(other._digests)
        mine = zip(self.counts, self._digests, strict=True)
        return sum(count for count, digest in mine if digest in known)

    def name(self, sample_id: int) -> str:
        """A sample's name for people: its key and its shard."""
        shard, row = self._place(sample_id)
        return f"{self._index(shard).keys[row]!r} in {self._shards[shard].name}"

    def read(self, sample_id: int) -> bytes:
        """The bytes of a sample's image; DataError when the shard has shrunk."""
        shard, row = self._place(sample_id)
        index = self._index(shard)
        return self._bytes(shard, int(index.offsets[row]), int(index.sizes[row]))

    def read_mask(self, sample_id: int) -> bytes:
        """The bytes of a sample's `.seg.png`; DataError where it has none."""
        shard, row = self._place(sample_id)
        index = self._index(shard)
        size = int(index.mask_sizes[row])
        if size < 0:
            raise DataError(f"sample {self.name(sample_id)} has no mask (a `.{MASK}` member)")
        return self._bytes(shard, int(index.mask_offsets[row]), size)

    def neighbours(self, sample_id: int) -> range:
        """The samples of the same shard."""
        shard, _ = self._place(sample_id)
        return range(self._starts[shard], self._starts[shard + 1])

    def takes(self, shard: int) -> int:
        """Bytes that a shard takes of the cache; 0 for a plain tar of this machine."""
        return self._shards[shard].takes()

    def fetch(self, shard: int, given_up: Event) -> None:
        """Have a shard at hand before it is read."""
        self._shards[shard].path(given_up)

    def close_others(self, shards: Collection[int]) -> None:
        """Close the files of all other shards; who still reads from one reads on."""
        with self._lock:
            for number in self._open_files.keys() - set(shards):
                del self._open_files[number]

    @cached_property
    def _digests(self) -> list[str]:
        return [
            shard.listed.digest if shard.listed else self._index(n).digest
            for n, shard in enumerate(self._shards)
        ]

    def _bytes(self, shard: int, offset: int, size: int) -> bytes:
        data = self._file(shard).read(size, offset)
        if len(data) < size:
            raise DataError(f"the shard {self._shards[shard].name} changed while in use")
        return data

    def _place(self, sample_id: int) -> tuple[int, int]:
        assert 0 <= sample_id < len(self)
        shard = bisect.bisect_right(self._starts, sample_id) - 1
        return shard, sample_id - self._starts[shard]

    def _index(self, shard: int) -> ShardIndex:
        index = self._indexes.get(shard)
        if index is None:
            index = self._indexes[shard] = self._shards[shard].index()
        return index

    def _every_index(self) -> list[ShardIndex]:
        self._look_into([n for n in range(len(self._shards)) if n not in self._indexes])
        return [self._indexes[n] for n in range(len(self._shards))]

    def _look_into(self, shards: Sequence[int]) -> None:
        if shards:
            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="stoplab-index") as pool:
                list(pool.map(self._index, shards))

    def _file(self, shard: int) -> _File:
        with self._lock:
            file = self._open_files.pop(shard, None)
            if file is not None:
                self._open_files[shard] = file  # the last used at the end
                return file
        try:
            file = self._opened(shard)  # perhaps fetched: others go on meanwhile
        except FileNotFoundError as error:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
        with self._lock:
            self._open_files[shard] = file
            if len(self._open_files) > MOST_OPEN:
                self._open_files.popitem(last=False)
        return file

    @again
    def _opened(self, shard: int) -> _File:
        path = self._shards[shard].path()  # a copy may go between its making and its opening
        try:
            return _File(path)
        except PermissionError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error


class _File:
    """A file to read at positions; it closes when the last reader lets go of it."""

    _descriptor = -1

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self._descriptor, size, offset)
