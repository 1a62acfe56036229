"""How a reconciler does: told by its thread, read by readiness and by metrics."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from stoplab_platform.resources import Resources

FAILED_PASSES = 3
"""So many failed passes one after the other are no bad moment any more."""


class Pulse:
    """Counts since this process began; written by one thread."""

    def __init__(self) -> None:
        self.passes = 0
        self.failures = 0
        self.seconds = 0.0
        """Spent in passes."""
        self.attempts = 0
        """Handed to the runner."""
        self.recoveries: Counter[str] = Counter()
        """By reason."""
        self.lost_sight = 0
        """Jobs that could not be looked after, by job and pass."""
        self.reserved = Resources()
        """By active jobs, as of the last pass."""
        self.held = Resources()
        """CPU- and GPU-seconds that active jobs have reserved."""
        self._began: float | None = None
        self._ended = time.monotonic()
        self._held_at: float | None = None
        self._failed_in_a_row = 0
        self._error = ""
        self._job_id: str | None = None

    @property
    def age_s(self) -> float:
        """Seconds since a pass came to a good end."""
        return time.monotonic() - self._ended

    @property
    def under_way_s(self) -> float:
        """Seconds of the pass under way; 0 between two."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Around one pass."""
        self._began = began = time.monotonic()
        try:
            yield
        except Exception as error:
            self.failures += 1
            self._failed_in_a_row += 1
            self._error = str(error) or type(error).__name__
            raise
        else:
            self._failed_in_a_row = 0
            self._ended = time.monotonic()
        finally:
            self.passes += 1
            self.seconds += time.monotonic() - began
            self._began = self._job_id = None

    @contextmanager
    def looking_at(self, job_id: str) -> Iterator[None]:
        """Around one job's part of a pass."""
        self._job_id = job_id
        yield
        self._job_id = None

    def hold(self, reserved: Resources) -> None:
        """Active jobs have this reserved, as they had since the last pass."""
        now, self.reserved = time.monotonic(), reserved
        if self._held_at is not None:
            self.held = self.held + reserved * (now - self._held_at)
        self._held_at = now

    def trouble(self, limit_s: float) -> str | None:
        """What is wrong, in a sentence; None while passes come to good ends often enough."""
        job_id, under_way = self._job_id, self.under_way_s
        if under_way > limit_s:
            where = "" if job_id is None else f", now at {job_id}"
            return f"a pass has been going on for {under_way:.0f} s{where}"
        if self._failed_in_a_row >= FAILED_PASSES:
            return f"its last {self._failed_in_a_row} passes failed: {self._error}"
        return None if self.age_s <= limit_s else f"its last good pass was {self.age_s:.0f} s ago"
