"""Tells the tracker how jobs ended: off the reconciler's thread, until it is told.

A deleted job's checkpoints and folder go after that, for what it logged may still lie there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from stoplab_platform import logs, tracking
from stoplab_platform.elsewhere import LEFT, discard
from stoplab_platform.errors import StoplabError, StoreUnavailable, TrackerUnavailable
from stoplab_platform.files import remove
from stoplab_platform.jobs.models import Job
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.settings import Settings
from stoplab_platform.tracking.base import Status

log = logging.getLogger("stoplab.reconciler")

STATUSES: dict[State, Status] = {
    State.SUCCEEDED: "FINISHED",
    State.FAILED: "FAILED",
    State.CANCELLED: "KILLED",
    State.PAUSED: "KILLED",
}
ACTOR = "reconciler"
DRAIN_S = 5.0
AGAIN_S = 10.0
"""Between two tries while the tracker is away, and before the second try of one job."""
LONGEST_S = 600.0
"""Between two tries of one job: its waits double up to that."""


class Settler:
    """Drains the spools of ended jobs and closes their runs; one thread, at most one round."""

    def __init__(
        self, store: JobStore, settings: Settings, forget: Callable[[Job], None] = lambda _job: None
    ) -> None:
        self._store, self._settings, self._forget = store, settings, forget
        self._thread: threading.Thread | None = None
        self._not_before = 0.0
        self._later: dict[str, tuple[float, float]] = {}
        """Jobs that failed on their own: not before when, and how long that was to wait."""

    def settle(self, jobs: Iterable[Job]) -> None:
        """Begin a round over the jobs unless one is under way, or the tracker was just away."""
        busy = self._thread is not None and self._thread.is_alive()
        now = time.monotonic()
        if busy or now < self._not_before:
            return
        known, jobs = self._later, list(jobs)
        self._later = {job.id: known[job.id] for job in jobs if job.id in known}
        jobs = [job for job in jobs if self._later.get(job.id, (now, 0))[0] <= now]
        if not jobs:
            return
        # A daemon: a tracker that hangs must not keep the API from ending.
        self._thread = threading.Thread(
            target=self._round, args=(jobs,), name="stoplab-settle", daemon=True
        )
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """Wait a little for the round under way; the next process takes up the rest."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _round(self, jobs: list[Job]) -> None:
        for job in jobs:
            with logs.context(job_id=job.id):
                try:
                    self._one(job)
                except StoreUnavailable as error:
                    return self._pause(error)
                except Exception as error:  # the thread's last stop; somebody must hear of it
                    if not tracking.answers(self._settings.tracking_uri):
                        return self._pause(error)
                    self._postpone(job, error)

    def _pause(self, error: Exception) -> None:
        log.warning("the tracker is told later how jobs ended: %s", error)
        self._not_before = time.monotonic() + AGAIN_S

    def _postpone(self, job: Job, error: Exception) -> None:
        """It is this job's own: a broken file, a lock, a word that the tracker refuses."""
        _, waited_s = self._later.get(job.id, (0, AGAIN_S / 2))
        wait_s = min(2 * waited_s, LONGEST_S)
        self._later[job.id] = time.monotonic() + wait_s, wait_s
        unexpected = None if isinstance(error, StoplabError) else error
        told = "%s is settled in %g s: %s"
        log.warning(told, job.id, wait_s, error, exc_info=unexpected)

    def _one(self, job: Job) -> None:
        uri = self._settings.tracking_uri
        for run in self._settings.folders.job(job.id).each_run():
            if not tracking.drain(run, uri, DRAIN_S):
                raise TrackerUnavailable(f"the spool of {job.id} is not empty")
        if not self._store.is_current(job):
            return  # it was resumed meanwhile, or deleted; the next round knows
        tracking.finish_runs(uri, job.id, STATUSES[job.state])
        if job.hidden:
            self._remove(job)
            self._forget(job)
        self._store.settle(job)

    def _remove(self, job: Job) -> None:
        """A deleted job's checkpoints, wherever they lie, and its folder, which tells where."""
        folder = self._settings.folders.job(job.id)
        for sentence in discard(folder.each_run(), self._settings, job.project):
            log.warning("%s: %s", job.id, sentence)
            self._store.record(job.id, actor=ACTOR, verb=LEFT, message=sentence)
        remove(folder.root)
