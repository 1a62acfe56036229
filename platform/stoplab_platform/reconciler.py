"""Brings the store and the cluster to agree: load, decide (a pure function), apply.

Several replicas may run at once. Every move is a guarded UPDATE, a submission's id follows from
job and attempt, and a job's folder has one owner; only admission needs a lease, for the capacity
is shared.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from stoplab_platform import logs
from stoplab_platform.admission import QueueInfo
from stoplab_platform.attempts import Attempts
from stoplab_platform.decide import (
    Action,
    AskStop,
    Kill,
    Move,
    Patience,
    Seen,
    Start,
    Tell,
    Wait,
    decide,
    recover,
)
from stoplab_platform.errors import Conflict, Fenced, RunnerUnavailable, StoreUnavailable
from stoplab_platform.failures import cause_in
from stoplab_platform.fence import owner
from stoplab_platform.ids import submission_id
from stoplab_platform.jobs.models import Job
from stoplab_platform.jobs.states import ReasonCode, State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.observe import Observer
from stoplab_platform.pulse import Pulse
from stoplab_platform.queueing import ACTOR, Queue
from stoplab_platform.retention import Keeper
from stoplab_platform.runner.base import Runner
from stoplab_platform.settings import Settings
from stoplab_platform.settle import Settler
from stoplab_platform.usage import Exceeded, exceeded, has_limits
from stoplab_platform.webhooks import Notifier

log = logging.getLogger("stoplab.reconciler")

REST_S = 0.2
"""Between what wakes the reconciler and its pass; whoever asks in that time is in it."""


class Reconciler:
    """One replica's reconciler; `run_forever` is its thread's work."""

    def __init__(
        self,
        store: JobStore,
        runner: Runner,
        settings: Settings,
        *,
        patience: Patience | None = None,
        command: Sequence[str] = (),
    ) -> None:
        self._store, self._settings = store, settings
        self._patience = patience or Patience(room_s=settings.room_hours * 3600 or math.inf)
        self._queue = Queue(store, runner, settings)
        self._observer = Observer(settings.folders, runner, self._patience)
        self._attempts = Attempts(runner, settings, command)
        self._settler = Settler(store, settings, self._attempts.forget)
        self._notifier = Notifier(store, settings)
        self._keeper = Keeper(store, settings, forget=self._attempts.forget)
        self._wake = threading.Event()
        self.pulse = Pulse()
        self._noted: set[tuple[str, int, str]] = set()

    @property
    def last_pass_age_s(self) -> float:
        """Seconds since a pass came to a good end."""
        return self.pulse.age_s

    def waiting(self, jobs: Iterable[Job] = ()) -> Mapping[str, QueueInfo]:
        """Why queued jobs wait, these among them; it needs no pass of ours."""
        return self._queue.waiting(jobs)

    def wake(self) -> None:
        """Something was asked: make the next pass now."""
        self._wake.set()

    def run_forever(self, stop: threading.Event) -> None:
        """A pass each period, or when woken, until ``stop``; nothing that fails ends it."""
        while not stop.is_set():
            try:
                self.pass_once()
            except StoreUnavailable as error:
                log.warning("%s", error)
            except Exception:  # the lab's one heart: it goes on whatever a pass met
                log.exception("a pass failed")
            self._wake.wait(self._settings.reconcile_period_s)
            stop.wait(
                min(REST_S, self._settings.reconcile_period_s)
            )  # many who ask at once share a pass
            self._wake.clear()
        self._settler.close()
        self._notifier.close()
        self._keeper.close()

    def pass_once(self) -> None:
        """Look at every unfinished job once, and do what is due."""
        with self.pulse.passing():
            self._pass()

    def _pass(self) -> None:
        jobs = self._queue.admit(self._queue.unfinished())
        self.pulse.hold(self._queue.all_reserved(jobs))
        self._observer.begin(jobs)
        ids = {job.id for job in jobs}
        self._noted = {note for note in self._noted if note[0] in ids}
        for job in jobs:
            if job.state is not State.QUEUED:
                with (
                    self.pulse.looking_at(job.id),
                    logs.context(job_id=job.id, attempt=job.attempt),
                ):
                    self._guarded(job)
        self._settler.settle(self._store.unsettled())
        self._notifier.notify()
        self._keeper.tidy()

    def _guarded(self, job: Job) -> None:
        """One job's part of a pass; whatever it meets, the others have theirs."""
        try:
            seen = self._see(job)
            for action in decide(job, seen, self._patience):
                job = self._apply(job, seen, action)
        except Conflict:
            log.info("%s changed meanwhile", job.id)
        except RunnerUnavailable as error:
            log.warning("%s: %s", job.id, error)
        except StoreUnavailable:
            raise
        except Exception as error:  # a full disk, a broken file: this job's alone
            self.pulse.lost_sight += 1
            log.exception("%s could not be looked after", job.id)
            self._note(job, "trouble", f"it could not be looked after: {_said(error)}")

    def _see(self, job: Job) -> Seen:
        seen = self._observer.look(job)
        recoveries = self._store.recoveries(job.id) if job.attempt > 1 else {}
        return replace(
            seen,
            recoveries=recoveries,
            max_failures=_max_failures(job),
            exceeded=self._exceeded(job),
        )

    def _exceeded(self, job: Job) -> Exceeded | None:
        if job.state is not State.RUNNING or not has_limits(job):
            return None
        gpus = self._queue.reserved(job).gpus
        return exceeded(job, self._store.history(job.id), gpus, datetime.now(UTC))

    def _apply(self, job: Job, seen: Seen, action: Action) -> Job:
        match action:
            case Move():
                return self._move(job, action)
            case Start():
                return self._start(job, seen)
            case AskStop():
                self._attempts.ask_stop(job)
            case Kill():
                self._attempts.kill(job)
                self._note(job, "kill", action.why)
            case Wait():
                return self._tell(job, action.why, "wait")
            case Tell():
                return self._tell(job, action.what, "workers")
        return job

    def _tell(self, job: Job, message: str, verb: str) -> Job:
        """Once, though it holds for many passes."""
        if job.message == message:
            return job
        return self._store.tell(job, message, actor=ACTOR, verb=verb)

    def _start(self, job: Job, seen: Seen) -> Job:
        """Hand it over; what its folder does not allow is a failed start like any other."""
        try:
            self._attempts.start(job)
        except RunnerUnavailable:
            raise
        except Fenced:  # the database was restored, or missed the folder's last change
            newest = owner(self._settings.folders.job(job.id))
            told = f"attempt {newest} owns the job's folder already; attempt {newest + 1} follows"
            move = Move(State.RECOVERING, ReasonCode.START_FAILED, told)
            return self._move(job, move, attempt=newest + 1)
        except Exception as error:
            log.exception("%s could not be started", job.id)
            reason = cause_in(str(error)) or ReasonCode.START_FAILED
            return self._move(job, recover(job, seen, self._patience, reason, _said(error)))
        self._note(job, "start", f"handed over as {submission_id(job.id, job.attempt)}")
        return job

    def _move(self, job: Job, move: Move, **columns: Any) -> Job:
        log.info("%s %s -> %s %s", job.id, job.state, move.to, move.message or "")
        if move.next_attempt:
            columns["attempt"] = job.attempt + 1
        if move.run_digest is not None:
            columns["run_digest"] = move.run_digest
        moved = self._store.move(
            job, move.to, actor=ACTOR, reason_code=move.reason_code, message=move.message,
            intent=move.intent, **columns,
        )  # fmt: skip
        if move.to is State.RECOVERING:
            self.pulse.recoveries[str(move.reason_code)] += 1
        return moved

    def _note(self, job: Job, verb: str, message: str) -> None:
        """An event, once an attempt: what is done again each pass says nothing new."""
        key = job.id, job.attempt, verb
        if key not in self._noted:
            self._noted.add(key)
            self.pulse.attempts += verb == "start"
            self._store.record(job.id, actor=ACTOR, verb=verb, message=message)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _max_failures(job: Job) -> int:
    compute = job.spec.get("base", job.spec).get("compute", {})
    return int(compute.get("max_failures", 0))
