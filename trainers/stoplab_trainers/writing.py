"""Checkpoints written beside the training, which waits for a copy in memory only."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stoplab_trainers import checkpoint
from stoplab_trainers.snapshot import Snapshots

log = logging.getLogger("stoplab.checkpoint")


class Writer:
    """Writes checkpoints below a folder, one at a time, in a thread of its own.

    What goes wrong there is raised here, by the next call.
    """

    def __init__(self, folder: Path, identity: Mapping[str, str]) -> None:
        self._folder, self._identity = folder, dict(identity)
        self._snapshots = Snapshots()
        self._thread = ThreadPoolExecutor(1, "stoplab-checkpoint")
        self._written: Future[Path] | None = None
        self._step = -1  # of the write in flight

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
            self.wait()

    def wait(self) -> None:
        """Until the checkpoint is whole and on the disk."""
        written, self._written = self._written, None
        if written is not None:
            written.result()

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
        self.wait()
        log.warning(
            "waited %.1f s until the checkpoint of step %d was written: checkpoints come faster "
            "than the disk takes them",
            time.monotonic() - began,
            self._step,
        )

    def _write(self, step: int, taken: dict[str, Any], keep: int) -> Path:
        self._snapshots.settle()
        return checkpoint.save(
            self._folder, step=step, tensors=taken, identity=self._identity, keep=keep
        )
