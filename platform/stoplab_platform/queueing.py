"""The queue: which jobs become STARTING in a pass, and what the others are told."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from uuid import uuid4

from stoplab_platform.admission import Claim, QueueInfo, Resources, admit, capacity, demand
from stoplab_platform.errors import Conflict, SpecError
from stoplab_platform.extend import limited
from stoplab_platform.jobs.models import Job
from stoplab_platform.jobs.states import ACTIVE, State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.runner.base import Runner
from stoplab_platform.settings import Settings
from stoplab_platform.specs import parse_spec

log = logging.getLogger("stoplab.reconciler")

ACTOR = "reconciler"
LEASE_PERIODS = 3  # a replica that misses so many passes has lost its turn


class Queue:
    """Admits queued jobs against the declared capacity; one replica at a time does."""

    def __init__(self, store: JobStore, runner: Runner, settings: Settings) -> None:
        self._store, self._runner = store, runner
        self._capacity = capacity(settings)
        self._ttl_s = LEASE_PERIODS * settings.reconcile_period_s
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
        self._demands: dict[str, Resources] = {}
        self._waiting: Mapping[str, QueueInfo] = {}

    def waiting(self) -> Mapping[str, QueueInfo]:
        """Why queued jobs wait, as of the last pass."""
        return self._waiting

    def reserved(self, jobs: Iterable[Job]) -> Resources:
        """What the active ones of these jobs have reserved, all together."""
        active = (job for job in jobs if job.state in ACTIVE)
        return sum((self._claim(job).demand for job in active), Resources())

    def admit(self, jobs: Sequence[Job]) -> Sequence[Job]:
        """The unfinished jobs, those whose turn it is moved to STARTING."""
        self._demands = {_key(job): self._demand(job) for job in jobs}
        admitted, self._waiting = self._plan(jobs)
        if not admitted:
            return jobs
        if not self._runner.alive():
            self._waiting = {
                job_id: QueueInfo(place, "the cluster does not answer")
                for place, job_id in enumerate([*admitted, *self._waiting], start=1)
            }
            return jobs
        if not self._store.lease("admission", self._holder, self._ttl_s):
            return jobs
        # Another replica may have admitted between the caller's look and our lease.
        jobs = self._store.unfinished()
        admitted, self._waiting = self._plan(jobs)
        return [self._start(job) if job.id in admitted else job for job in jobs]

    def _plan(self, jobs: Sequence[Job]) -> tuple[list[str], dict[str, QueueInfo]]:
        queued = [self._claim(job) for job in jobs if job.state is State.QUEUED]
        active = [self._claim(job) for job in jobs if job.state is not State.QUEUED]
        return admit(queued, active, self._capacity, datetime.now(UTC))

    def _claim(self, job: Job) -> Claim:
        asked = self._demands.get(_key(job))
        return Claim(job.id, job.priority, job.created_at, asked or self._demand(job))

    def _demand(self, job: Job) -> Resources:
        known = self._demands.get(_key(job))
        if known is not None:
            return known
        try:
            return demand(limited(parse_spec(job.spec), job.limits), self._capacity)
        except SpecError:
            # Accepted by another release. What runs may need all; what waits fails by itself.
            log.warning("%s has a spec that this release does not read", job.id)
            return Resources() if job.state is State.QUEUED else self._capacity

    def _start(self, job: Job) -> Job:
        try:
            return self._store.move(
                job, State.STARTING, actor=ACTOR, verb="admit", attempt=job.attempt + 1
            )
        except Conflict:
            return job  # its owner cancelled or paused it meanwhile


def _key(job: Job) -> str:
    """A job's demand depends on its spec, which stays, and on its limits."""
    return f"{job.id} {sorted(job.limits.items())}"
