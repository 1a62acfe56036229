"""Work off the reconciler's thread: one round at a time, each begun by a pass."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger("stoplab.reconciler")


class Rounds:
    """Runs ``work`` in a thread of its own when asked to, unless it is still at it or pauses."""

    def __init__(self, name: str, work: Callable[[], None], *, wait_s: float = 0.0) -> None:
        self._name, self._work = name, work
        self._thread: threading.Thread | None = None
        self._not_before = time.monotonic() + wait_s

    def begin(self) -> None:
        """Begin a round unless one is under way, or it is too early for it."""
        if self.busy or time.monotonic() < self._not_before:
            return
        # A daemon: what hangs must not keep the API from ending.
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a round is under way."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def begun(self) -> bool:
        """Whether there was a round."""
        return self._thread is not None

    def pause(self, wait_s: float) -> None:
        """Begin no round for so long."""
        self._not_before = time.monotonic() + wait_s

    def wait(self, timeout_s: float) -> bool:
        """Whether no round is under way; gives the present one so long."""
        if self._thread is not None:
            self._thread.join(timeout_s)
        return not self.busy

    def _run(self) -> None:
        try:
            self._work()
        except Exception:  # the thread's last stop; somebody must hear of it
            log.exception("%s failed", self._name)
            self.pause(60.0)
