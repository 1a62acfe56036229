"""Checkpoints written beside the training, which waits for a copy in memory only.

A kill loses what was trained since the last checkpoint that was whole. So a small state, whose
write takes no time worth speaking of, is waited for: then that is one interval. Of a large one it
is an interval and one write, in which at most the next interval passes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from typing import Any

from stoplab_platform.errors import DataAway
from stoplab_trainers import checkpoint
from stoplab_trainers.snapshot import Snapshots

MOST_LOST = 3  # saves in a row that find no space, or a place that does not answer
SMALL_BYTES = 16 << 20  # a state that is waited for,
SMALL_S = 1.0  # for so long: its place may be slow

log = logging.getLogger("stoplab.checkpoint")


@dataclass(frozen=True)
class Written:
    """A checkpoint that is whole."""

    step: int
    wait_s: float
    """Seconds that the training waited when it was begun, for it and the one before."""
    write_s: float
    """Seconds until it was whole."""


class Writer:
    """Writes the checkpoints of a run, one at a time, in a thread of its own.

    What goes wrong there is raised here, by the next call; a full disk and a place that does not
    answer only at the third save in a row, or where one waits for the checkpoint.
    """

    def __init__(self, where: checkpoint.Where, identity: Mapping[str, str]) -> None:
        self._where, self._identity = where, dict(identity)
        self._snapshots = Snapshots()
        self._thread = ThreadPoolExecutor(1, "stoplab-checkpoint")
        self._written: Future[float] | None = None
        self._step = -1  # of the write in flight
        self._wait_s = 0.0  # for it
        self._lost = 0  # saves in a row that came to nothing
        self._ended: list[Written] = []

    def begin(self, step: int, state: dict[str, Any], keep: int) -> None:
        """Start to write a step's state, which may change once this returns.

        An earlier write is waited for: there is memory for one. So is this one, if it is small.
        """
        began = time.monotonic()
        self._wait_for_room()
        taken = self._snapshots.take(state)
        self._step = step
        self._written = self._thread.submit(self._write, step, taken, keep)
        if self._snapshots.bytes <= SMALL_BYTES:
            wait([self._written], SMALL_S)
        self._wait_s = time.monotonic() - began

    def check(self) -> None:
        """Raise what went wrong, if the write has ended; it does not wait."""
        if self._written is not None and self._written.done():
            self._end()

    def wait(self) -> None:
        """Until the checkpoint is whole and on the disk; any error is raised, a full disk too."""
        written, self._written = self._written, None
        if written is not None:
            self._ended.append(Written(self._step, self._wait_s, written.result()))
            self._lost = 0

    def ended(self) -> list[Written]:
        """Checkpoints that have become whole since this was asked last."""
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Let the write end and tell the log if it fails: for where another error ends the run."""
        try:
            self.wait()
        except Exception:
            log.exception("the checkpoint of step %d was not written", self._step)
        self._thread.shutdown()

    def _wait_for_room(self) -> None:
        if self._written is None or self._written.done():
            self.check()
            return
        began = time.monotonic()
        self._end()
        log.warning(
            "waited %.1f s for the checkpoint of step %d to be written: they come faster than "
            "their place takes them",
            time.monotonic() - began,
            self._step,
        )

    def _end(self) -> None:
        """Wait; what may pass while the run goes on is only told: a full disk, an absent store."""
        try:
            self.wait()
        except (OSError, DataAway) as error:
            self._lost += 1
            passes = isinstance(error, DataAway) or error.errno in (ENOSPC, EDQUOT)
            if not passes or self._lost == MOST_LOST:
                raise
            log.error(
                "THE CHECKPOINT OF STEP %d IS NOT SAVED: %s. The run goes on, and earlier "
                "checkpoints stay; see to it: it ends when %d in a row are lost, and this was %d",
                self._step,
                error,
                MOST_LOST,
                self._lost,
            )

    def _write(self, step: int, taken: dict[str, Any], keep: int) -> float:
        began = time.monotonic()
        self._snapshots.settle()
        checkpoint.save(self._where, step=step, tensors=taken, identity=self._identity, keep=keep)
        return time.monotonic() - began
