"""Checkpoints written beside the training, which waits for a copy in memory only."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any

from stoplab_trainers import checkpoint
from stoplab_trainers.snapshot import Snapshots

MOST_LOST = 3  # saves in a row that find no space

log = logging.getLogger("stoplab.checkpoint")


class Writer:
    """Writes checkpoints below a folder, one at a time, in a thread of its own.

    What goes wrong there is raised here, by the next call; a full disk only at the third save in a
    row, or where one waits for the checkpoint.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        self._folder, self._identity = folder, dict(identity)
        self._snapshots = Snapshots()
        self._thread = ThreadPoolExecutor(1, "stoplab-checkpoint")
        self._written: Future[Path] | None = None
        self._step = -1  # of the write in flight
        self._lost = 0  # saves in a row that found no space

    def begin(self, step: int, state: dict[str, Any], keep: int) -> None:
        """Start to write a step's state, which may change once this returns.

        An earlier write is waited for: there is memory for one.
        """
        self._wait_for_room()
        taken = self._snapshots.take(state)
        self._step = step
        self._written = self._thread.submit(self._write, step, taken, keep)

    def check(self) -> None:
        """Raise what went wrong, if the write has ended; it does not wait."""
        if self._written is not None and self._written.done():
            self._end()

    def wait(self) -> None:
        """Until the checkpoint is whole and on the disk; any error is raised, a full disk too."""
        written, self._written = self._written, None
        if written is not None:
            written.result()
            self._lost = 0

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
            "waited %.1f s for the checkpoint of step %d to be written: they come faster than the "
            "disk takes them",
            time.monotonic() - began,
            self._step,
        )

    def _end(self) -> None:
        """Wait; a full disk is only told, for somebody may make room while the run goes on."""
        try:
            self.wait()
        except OSError as error:
            self._lost += 1
            if error.errno not in (ENOSPC, EDQUOT) or self._lost == MOST_LOST:
                raise
            log.error(
                "THE CHECKPOINT OF STEP %d IS NOT SAVED: %s. The run goes on, and earlier "
                "checkpoints stay; make room: it ends when %d in a row are lost, and this was %d",
                self._step,
                error,
                MOST_LOST,
                self._lost,
            )

    def _write(self, step: int, taken: dict[str, Any], keep: int) -> Path:
        self._snapshots.settle()
        return checkpoint.save(
            self._folder, step=step, tensors=taken, identity=self._identity, keep=keep
        )
