"""A set of images in WebDataset shards, each sample at hand by its number."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from stoplab_platform.errors import DataError
from stoplab_trainers.data.index import MASK, UNLABELLED, ShardIndex, index_of
from stoplab_trainers.data.urls import LocalShard, local_shards

MOST_OPEN = 128


class ShardSet:
    """Samples 0 to len - 1, in the order of the shards and of the members in each.

    Reading is safe from many threads: positions are passed to the kernel, none is kept.
    """

    def __init__(self, shards: Sequence[LocalShard], indexes: Sequence[ShardIndex]) -> None:
        self._shards, self._indexes = list(shards), list(indexes)
        self.counts = tuple(len(index.keys) for index in indexes)
        self._starts = np.concatenate([[0], np.cumsum(self.counts)])
        self._open_files: OrderedDict[Path, _File] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def open(cls, urls: str | Sequence[str], cache: Path, storage: str | None = None) -> ShardSet:
        """The shards that ``urls`` name; DataError where there are none, or some are missing.

        ``storage``: a reference to the secret that opens remote ones.
        """
        shards = local_shards(urls, cache, storage)
        return cls(shards, [index_of(shard.path, cache) for shard in shards])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def keys(self) -> list[str]:
        """The samples' keys."""
        return [key for index in self._indexes for key in index.keys]

    @cached_property
    def labels(self) -> NDArray[np.int64] | None:
        """The samples' class indices; None unless every sample has one."""
        labels = np.concatenate([index.labels for index in self._indexes])
        return None if (labels == UNLABELLED).any() else labels

    @property
    def unlabelled(self) -> str | None:
        """The first sample without a class index, if there is one."""
        for shard, index in enumerate(self._indexes):
            for row in np.flatnonzero(index.labels == UNLABELLED)[:1]:
                return self.name(int(self._starts[shard] + row))
        return None

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 (hex) of what the shards hold, in order, wherever they lie."""
        digests = "\n".join(index.digest for index in self._indexes)
        return hashlib.sha256(digests.encode()).hexdigest()

    def shared_with(self, other: ShardSet) -> int:
        """How many of the samples lie in a shard that ``other`` has too, wherever that lies."""
        known = {index.digest for index in other._indexes}
        return sum(len(one.keys) for one in self._indexes if one.digest in known)

    def name(self, sample_id: int) -> str:
        """A sample's name for people: its key and its shard."""
        shard, row = self._place(sample_id)
        return f"{self._indexes[shard].keys[row]!r} in {self._shards[shard].name}"

    def read(self, sample_id: int) -> bytes:
        """The bytes of a sample's image; DataError when the shard has shrunk."""
        shard, row = self._place(sample_id)
        index = self._indexes[shard]
        return self._bytes(shard, int(index.offsets[row]), int(index.sizes[row]))

    def read_mask(self, sample_id: int) -> bytes:
        """The bytes of a sample's `.seg.png`; DataError where it has none."""
        shard, row = self._place(sample_id)
        index = self._indexes[shard]
        size = int(index.mask_sizes[row])
        if size < 0:
            raise DataError(f"sample {self.name(sample_id)} has no mask (a `.{MASK}` member)")
        return self._bytes(shard, int(index.mask_offsets[row]), size)

    def _bytes(self, shard: int, offset: int, size: int) -> bytes:
        data = self._file(self._shards[shard].path).read(size, offset)
        if len(data) < size:
            raise DataError(f"the shard {self._shards[shard].path} changed while in use")
        return data

    def _place(self, sample_id: int) -> tuple[int, int]:
        assert 0 <= sample_id < len(self)
        shard = int(np.searchsorted(self._starts, sample_id, side="right")) - 1
        return shard, int(sample_id - self._starts[shard])

    def _file(self, path: Path) -> _File:
        with self._lock:
            file = self._open_files.pop(path, None) or _File(path)
            self._open_files[path] = file  # the last used at the end
            if len(self._open_files) > MOST_OPEN:
                self._open_files.popitem(last=False)
            return file


class _File:
    """A file to read at positions; it closes when the last reader lets go of it."""

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._descriptor = -1
            raise DataError(f"{path} cannot be read: {error.strerror}") from error

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read(self, size: int, offset: int) -> bytes:
        return os.pread(self._descriptor, size, offset)
