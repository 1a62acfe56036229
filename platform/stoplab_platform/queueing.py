"""The queue: which jobs become STARTING in a pass, and what the others are told."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from uuid import uuid4

from stoplab_platform.admission import Admission, Claim, QueueInfo, capacity, demand
from stoplab_platform.errors import Conflict, SpecError
from stoplab_platform.extend import limited
from stoplab_platform.jobs.models import Job
from stoplab_platform.jobs.states import ACTIVE, State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.resources import Resources
from stoplab_platform.runner.base import Runner
from stoplab_platform.settings import Settings
from stoplab_platform.specs import parse_spec

log = logging.getLogger("stoplab.reconciler")

ACTOR = "reconciler"
LEASE_PERIODS = 3  # a replica that misses so many passes has lost its turn
ASK_S = 10.0  # between two questions to the runner that only serve to explain


class Queue:
    """Admits queued jobs against the declared capacity; one replica at a time does.

    Why jobs wait is computed from the store, so that every replica can tell.
    """

    def __init__(self, store: JobStore, runner: Runner, settings: Settings) -> None:
        self._store, self._runner, self._settings = store, runner, settings
        self._capacity = capacity(settings)
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._demands: dict[str, Resources] = {}
        self._known: Mapping[str, Job] = {}
        self._claims: dict[str, tuple[int, Claim]] = {}
        self._waiting: dict[str, QueueInfo] = {}
        self._admission: Admission | None = None  # as the last look left it
        self._looking = threading.Lock()
        self._looked_at = self._asked_at = float("-inf")
        self._alive = True

    def waiting(self, jobs: Iterable[Job] = ()) -> Mapping[str, QueueInfo]:
        """Why queued jobs wait, these among them; not older than a pass of the reconciler."""
        old = time.monotonic() - self._looked_at > self._settings.reconcile_period_s
        if old or not all(self._knows(job) for job in jobs):
            self._explain(self.unfinished(), ASK_S)
        return self._waiting

    def unfinished(self) -> Sequence[Job]:
        """Unfinished jobs as they are now; what has not changed since is not read again."""
        jobs = self._store.unfinished(self._known)
        self._known = {job.id: job for job in jobs}
        return jobs

    def reserved(self, job: Job) -> Resources:
        """What a job reserves while it is active."""
        key = f"{job.id} {sorted(job.limits.items())}"  # its spec stays
        if key not in self._demands:
            self._demands[key] = self._demand(job)
        return self._demands[key]

    def all_reserved(self, jobs: Iterable[Job]) -> Resources:
        """What the active ones of these jobs have reserved, all together."""
        return sum((self.reserved(job) for job in jobs if job.state in ACTIVE), Resources())

    def admit(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """The unfinished jobs, those whose turn it is moved to STARTING."""
        if len(self._demands) > 2 * len(jobs) + 100:
            self._demands, self._claims = {}, {}  # of jobs that are gone
        admitted = self._explain(jobs, 0)
        lease_s = LEASE_PERIODS * self._settings.reconcile_period_s
        # After the turn another replica may count anew; its other half is for the last UPDATE.
        until = time.monotonic() + lease_s / 2
        if not (admitted and self._alive):
            return jobs
        if not self._store.lease("admission", self._holder, lease_s):
            return jobs
        # Another replica may have admitted between the caller's look and our lease.
        jobs = self.unfinished()
        admitted = self._explain(jobs, ASK_S)
        return [self._start(job, until) if job.id in admitted else job for job in jobs]

    def _explain(self, jobs: Sequence[Job], ask_s: float) -> Sequence[str]:
        """Who could start now; the runner's word on whether it takes any may be ``ask_s`` old."""
        queued = [self._claim(job) for job in jobs if job.state is State.QUEUED]
        active = [self._claim(job) for job in jobs if job.state is not State.QUEUED]
        now = datetime.now(UTC)
        admission = Admission(active, self._capacity, now, self._settings.quota)
        admitted, waiting = admission.admit(queued)
        if admitted and time.monotonic() - self._asked_at >= ask_s:
            self._alive, self._asked_at = self._runner.alive(), time.monotonic()
        if admitted and not self._alive:
            reason = "the cluster does not answer"
            waiting = {name: QueueInfo(info.position, reason) for name, info in waiting.items()}
        else:
            reason = "is next, and starts in a moment"
        first = {name: QueueInfo(place, reason) for place, name in enumerate(admitted, start=1)}
        with self._looking:
            self._waiting, self._admission = first | waiting, admission
            self._looked_at = time.monotonic()
        return admitted

    def _knows(self, job: Job) -> bool:
        """Whether the last look can say why the job waits; a new one is put at the line's end."""
        with self._looking:
            if job.id in self._waiting:
                return True
            claim = self._claim(job)
            if self._admission is None or not (self._alive and self._admission.comes_last(claim)):
                return False
            reason = self._admission.place(claim)
            if reason is None:
                return False
            self._waiting[job.id] = QueueInfo(len(self._waiting) + 1, reason)
            return True

    def _claim(self, job: Job) -> Claim:
        """Made once of each version: in a long queue few have changed since the last look."""
        known = self._claims.get(job.id)
        if known is None or known[0] != job.version:
            claim = Claim(job.id, job.priority, job.created_at, self.reserved(job), job.project)
            known = self._claims[job.id] = job.version, claim
        return known[1]

    def _demand(self, job: Job) -> Resources:
        try:
            spec = limited(parse_spec(job.spec), job.limits)
        except SpecError:
            # Accepted by another release. What runs may need all; what waits fails by itself.
            log.warning("%s has a spec that this release does not read", job.id)
            return Resources() if job.state is State.QUEUED else self._capacity
        return demand(spec, self._capacity, self._settings.quota(job.project))

    def _start(self, job: Job, until: float) -> Job:
        if time.monotonic() > until:
            return job  # in the next pass
        try:
            return self._store.move(
                job, State.STARTING, actor=ACTOR, verb="admit", attempt=job.attempt + 1
            )
        except Conflict:
            return job  # its owner cancelled or paused it meanwhile
