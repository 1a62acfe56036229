"""Which samples a step trains on: a function of the seed and the step, and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stoplab_platform.errors import DataError
from stoplab_platform.randomness import Stream, generator

Ids = NDArray[np.int64]


class Plan:
    """Step to sample ids, for the global batch.

    An epoch is an order of all samples, drawn anew, cut into whole batches: each sample comes at
    most once, fewer than a batch are left out. With ``window_shards`` the shards are shuffled,
    and samples only inside windows of that many shards, so that reading streams.
    """

    def __init__(
        self,
        counts: Sequence[int],
        batch_size: int,
        seed: int,
        window_shards: int | None = None,
    ) -> None:
        self.counts, self.batch_size = tuple(counts), batch_size
        self.seed, self.window_shards = seed, window_shards
        self.num_samples = sum(counts)
        self.steps_per_epoch = self.num_samples // batch_size
        if self.steps_per_epoch == 0:
            raise DataError(
                f"the set has {self.num_samples} samples, fewer than one batch; "
                f"give optim.batch_size {self.num_samples} or less (is {batch_size})"
            )
        # Kept: the windows that batches in the making touch.
        self._windows = lru_cache(maxsize=4)(self._draw_windows)
        self._order = lru_cache(maxsize=8)(self._draw_order)

    def epoch(self, step: int) -> int:
        """The epoch (from 0) that a step (from 0) belongs to."""
        return step // self.steps_per_epoch

    def ids(self, step: int) -> Ids:
        """Sample ids of the global batch at a step (from 0): [batch_size], all different."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start, stop = position * self.batch_size, (position + 1) * self.batch_size
        ends = self._windows(epoch)[1]
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        parts = []
        for window in range(int(first), int(last) + 1):
            before = int(ends[window - 1]) if window else 0
            order = self._order(epoch, window)
            parts.append(order[max(0, start - before) : stop - before])
        return np.concatenate(parts)

    def windows(self, step: int) -> list[tuple[int, int]]:
        """The windows, as (epoch, number in it), that a step reads from."""
        epoch, position = divmod(step, self.steps_per_epoch)
        ends = self._windows(epoch)[1]
        start, stop = position * self.batch_size, (position + 1) * self.batch_size
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        return [(epoch, window) for window in range(int(first), int(last) + 1)]

    def following(self, epoch: int, window: int) -> tuple[int, int]:
        """The window that comes after one."""
        is_last = window + 1 == len(self._windows(epoch)[0])
        return (epoch + 1, 0) if is_last else (epoch, window + 1)

    def windows_at_once(self, batches: int) -> int:
        """How many must be at hand for so many batches in a row, and for reading ahead of them."""
        if self.window_shards is None:
            return 1
        samples_of_a_window = self.num_samples / math.ceil(len(self.counts) / self.window_shards)
        return 1 + math.ceil(batches * self.batch_size / samples_of_a_window)

    def shards(self, epoch: int, window: int, rank: int, world: int) -> list[int]:
        """The shards that a rank reads in a window, in the order in which it first does."""
        ends = self._windows(epoch)[1]
        order = self._order(epoch, window)
        places = np.arange(len(order)) + (int(ends[window - 1]) if window else 0)
        rows = share(self.batch_size, rank, world)
        row = places % self.batch_size
        read = (places < self.steps_per_epoch * self.batch_size) & (rows.start <= row)
        ids = order[read & (row < rows.stop)]
        numbers = np.searchsorted(np.cumsum(self.counts), ids, side="right")
        return [int(number) for number in dict.fromkeys(numbers.tolist())]

    def _draw_windows(self, epoch: int) -> tuple[list[Ids], Ids]:
        """The epoch's windows as lists of shards, and where each ends in the epoch's order."""
        shards = np.arange(len(self.counts))
        windows = [shards]
        if self.window_shards is not None:
            shards = generator(self.seed, Stream.ORDER, epoch).permutation(shards)
            cuts = range(0, len(shards), self.window_shards)
            windows = [shards[cut : cut + self.window_shards] for cut in cuts]
        counts = np.asarray(self.counts, dtype=np.int64)
        return windows, np.cumsum([counts[window].sum() for window in windows])

    def _draw_order(self, epoch: int, window: int) -> Ids:
        """The samples of one window, shuffled."""
        starts = np.cumsum([0, *self.counts])
        shards = self._windows(epoch)[0][window]
        ids = np.concatenate([np.arange(starts[s], starts[s + 1]) for s in shards])
        return generator(self.seed, Stream.ORDER, epoch, window + 1).permutation(ids)


def share(batch_size: int, rank: int, world: int) -> slice:
    """A rank's rows of the global batch."""
    assert batch_size % world == 0, "the spec checks that the batch divides"
    rows = batch_size // world
    return slice(rank * rows, (rank + 1) * rows)
