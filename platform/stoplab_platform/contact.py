"""A supervisor's contact with its job's folder: is it still ours, are we to stop, we are alive.

It has a thread of its own: a file system that hangs blocks that thread alone, and the supervisor
goes by how long nothing was heard. Out of contact it ends its run before anybody starts another.
"""

from __future__ import annotations

import itertools
import threading
import time
from errno import EDQUOT, ENOSPC
from json import JSONDecodeError

from stoplab_platform.fence import owner
from stoplab_platform.files import write_json
from stoplab_platform.handoff import StopOrder, read_stop
from stoplab_platform.jobs.states import ReasonCode
from stoplab_platform.paths import JobFolder

BEAT_S = 1.0
LOOK_S = 0.2
CUT_OFF_S = 45.0
"""Without contact for so long, an attempt ends itself: sooner than another may be started in its
place (`decide.Patience.silent_s`)."""
LEAVE_S = 5.0  # for the last round; a file system that hangs is not waited for


class Contact:
    """Looks and beats for as long as the block lasts."""

    def __init__(self, folder: JobFolder, attempt: int) -> None:
        self._folder, self._attempt = folder, attempt
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="stoplab-contact", daemon=True)
        self._beaten_at = time.monotonic()
        self._trouble: int | None = None
        self.fenced = False
        """Whether a newer attempt owns the folder."""
        self.stop: tuple[StopOrder, float] | None = None
        """What was asked of this attempt, and when it was seen (monotonic clock)."""

    def __enter__(self) -> Contact:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join(LEAVE_S)

    def lost(self) -> ReasonCode | None:
        """Why the attempt must end itself, if it was out of contact for too long."""
        if time.monotonic() - self._beaten_at < CUT_OFF_S:
            return None
        full = self._trouble in (ENOSPC, EDQUOT)
        return ReasonCode.DISK_FULL if full else ReasonCode.HEARTBEAT_LOST

    def _work(self) -> None:
        beat_at, counts = 0.0, itertools.count(1)
        while not self.fenced:
            began = time.monotonic()
            try:
                self._look()
                if not self.fenced and began >= beat_at:
                    self._beat(next(counts))
                    self._beaten_at, beat_at = began, began + BEAT_S
            except OSError as error:  # one that is away for a moment ends nothing
                self._trouble = error.errno
            except JSONDecodeError:
                self._trouble = None
            if self._over.wait(LOOK_S):
                return

    def _look(self) -> None:
        owned_by = owner(self._folder)
        self.fenced = owned_by > self._attempt
        if owned_by < self._attempt:
            # It was ours: what we see is an empty mount point, or a folder that was deleted.
            raise FileNotFoundError(self._folder.owner)
        order = read_stop(self._folder, self._attempt)
        if order is not None and (self.stop is None or self.stop[0] != order):
            self.stop = order, time.monotonic()

    def _beat(self, count: int) -> None:
        write_json(self._folder.heartbeat, {"attempt": self._attempt, "count": count})
