"""A copy of a run's state in memory, which no later step changes."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Key = tuple[int, int, bool]
"""Of a buffer: which one of the state's storages, bytes, whether it is pinned."""


class Snapshots:
    """Takes one snapshot at a time, always into the same memory: as many bytes as the state has.

    `torch.save` writes the same bytes of a snapshot as of a state on the CPU: whole storages are
    copied, each once, so that views and weights that are shared stay so.
    """

    def __init__(self) -> None:
        self._buffers: dict[Key, torch.UntypedStorage] = {}
        self._copied: torch.cuda.Event | None = None

    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """A copy on the CPU, valid until the next one is taken; `settle` before it is read.

        From a GPU nothing is waited for: the copies lie in the stream before the next step's work.
        """
        tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
        buffers: dict[Key, torch.UntypedStorage] = {}
        copied: dict[int, torch.UntypedStorage] = {}  # by the address of the storage
        copies: dict[int, Any] = {}  # what `deepcopy` takes in place of a tensor
        with torch.no_grad():
            for tensor in tensors:
                source = tensor.untyped_storage()
                if source._cdata not in copied:
                    key = len(copied), source.nbytes(), source.is_cuda
                    buffers[key] = self._buffer(key).copy_(source, non_blocking=True)
                    copied[source._cdata] = buffers[key]
                place = tensor.storage_offset(), tensor.size(), tensor.stride()
                one = torch.empty(0, dtype=tensor.dtype)
                copies[id(tensor)] = one.set_(copied[source._cdata], *place)
        self._buffers = buffers
        self._copied = None
        if any(pinned for _, _, pinned in buffers):
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        return copy.deepcopy(state, copies)

    @property
    def bytes(self) -> int:
        """What the last one takes."""
        return sum(size for _, size, _ in self._buffers)

    def settle(self) -> None:
        """Wait until everything has come from the GPU; any thread may."""
        if self._copied is not None:
            self._copied.synchronize()

    def _buffer(self, key: Key) -> torch.UntypedStorage:
        _, size, pinned = key
        if key in self._buffers:
            return self._buffers[key]
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned).untyped_storage()
