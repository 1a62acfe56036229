"""Tells the tracker how jobs ended: off the reconciler's thread, until it is told."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable

from stoplab_platform import logs, tracking
from stoplab_platform.errors import StoreUnavailable, TrackerUnavailable
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
DRAIN_S = 5.0
AGAIN_S = 10.0  # between two tries while the tracker is away


class Settler:
    """Drains the spools of ended jobs and closes their runs; one thread, at most one round."""

    def __init__(self, store: JobStore, settings: Settings) -> None:
        self._store, self._settings = store, settings
        self._thread: threading.Thread | None = None
        self._not_before = 0.0

    def settle(self, jobs: Iterable[Job]) -> None:
        """Begin a round over the jobs unless one is under way, or the tracker was just away."""
        jobs = list(jobs)
        busy = self._thread is not None and self._thread.is_alive()
        if not jobs or busy or time.monotonic() < self._not_before:
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
        try:
            for job in jobs:
                with logs.context(job_id=job.id):
                    self._one(job)
        except (TrackerUnavailable, StoreUnavailable) as error:
            log.warning("the tracker is told later how jobs ended: %s", error)
            self._not_before = time.monotonic() + AGAIN_S
        except Exception:  # the thread's last stop; the reconciler must hear of it
            log.exception("telling the tracker failed")
            self._not_before = time.monotonic() + AGAIN_S

    def _one(self, job: Job) -> None:
        uri = self._settings.tracking_uri
        for run in self._settings.folders.job(job.id).each_run():
            if not tracking.drain(run, uri, DRAIN_S):
                raise TrackerUnavailable(f"the spool of {job.id} is not empty")
        tracking.finish_runs(uri, job.id, STATUSES[job.state])
        self._store.settle(job)
