"""Samples that no image can be made of: named once, replaced, and counted.

What stands for one is another sample of its shard, a function of the seed, the epoch and the
sample: every rank, worker and restart comes to the same. Each rank notes those that it met in a
file of the run's folder, so that a restart counts none twice and rank 0 knows of all.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

import numpy as np

from stoplab_platform.errors import DataError
from stoplab_platform.files import add_line, read_lines
from stoplab_platform.randomness import Stream, row_keys, uniforms
from stoplab_trainers.data.shards import ShardSet

log = logging.getLogger("stoplab.data")

CANDIDATES = 32  # that are tried in place of one
REPLACING = 2**31  # beyond every number of a window, which the stream also counts by
MOST_NAMED = 20


class BadSamples:
    """Those of one run; ``most`` may be met before it fails."""

    def __init__(self, shards: ShardSet, most: int, seed: int) -> None:
        self._shards, self._most, self._seed = shards, most, seed
        self._known: dict[int, str] = {}
        self._folder: Path | None = None
        self._file: Path | None = None
        self._lock = Lock()

    def keep_in(self, folder: Path, rank: int) -> None:
        """Note them in the run's folder from now on, and know those that are noted there."""
        self._folder, self._file = folder, folder / f"rank-{rank}.jsonl"
        self._known |= self._noted()

    def candidates(self, sample_id: int, epoch: int) -> Iterator[int]:
        """The sample, unless it is known to be bad, and then those that may stand for it."""
        if sample_id not in self._known:
            yield sample_id
        others = self._shards.neighbours(sample_id)
        rows = np.array([sample_id])
        keys = row_keys(self._seed, Stream.ORDER, epoch, REPLACING, rows=rows)
        for u in uniforms(keys, CANDIDATES)[0]:
            candidate = others[int(u * len(others))]
            if candidate not in self._known:
                yield candidate

    def note(self, sample_id: int, error: DataError) -> None:
        """One that was met; DataError where it is one too many."""
        with self._lock:
            if sample_id in self._known:
                return
            self._known[sample_id] = str(error)
            if self._file is not None:
                add_line(self._file, {"sample": sample_id, "why": str(error)})
        if self._most:
            log.warning("%s; another of its shard is taken", error)
        self.check()

    def total(self) -> int:
        """How many were met, by this rank or, as far as they are noted, by others."""
        noted = self._noted()
        with self._lock:
            self._known |= noted
            return len(self._known)

    def check(self) -> None:
        """DataError, which lists them, where there are more than may be."""
        with self._lock:
            met = list(self._known.values())
        if len(met) > self._most:
            more = [f"and {len(met) - MOST_NAMED} more"] if len(met) > MOST_NAMED else []
            raise DataError("\n".join([
                f"{len(met)} samples cannot be read, and data.max_bad_samples allows {self._most}:",
                *met[:MOST_NAMED], *more,
            ]))  # fmt: skip

    def _noted(self) -> dict[int, str]:
        files = sorted(self._folder.glob("rank-*.jsonl")) if self._folder else []
        return {line["sample"]: line["why"] for file in files for line in read_lines(file)}
