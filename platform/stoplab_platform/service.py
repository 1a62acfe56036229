"""What people ask of jobs: the REST API calls this, and nothing else changes a job for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from stoplab_platform.admission import QueueInfo, capacity, misfits, overruns, told_limits
from stoplab_platform.errors import Conflict, Forbidden, IllegalMove, NotFound, SpecError
from stoplab_platform.extend import extended, limited
from stoplab_platform.files import remove, write_json
from stoplab_platform.handoff import request_stop
from stoplab_platform.ids import new_job_id
from stoplab_platform.jobs.models import (
    Event,
    IdempotencyRecord,
    Intent,
    Job,
    JobQuery,
    NewJob,
    Page,
    Principal,
    Role,
    Submitted,
)
from stoplab_platform.jobs.states import TERMINAL, ReasonCode, State, allowed_actions
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.jobs.views import job_view
from stoplab_platform.settings import Settings
from stoplab_platform.specs import AnySpec, parse_spec
from stoplab_platform.tracking import sent_run_ids
from stoplab_platform.trust import untrusted

TRIES = 5  # against somebody else's move coming between


class Jobs:
    """Jobs for one principal at a time. Other projects' jobs do not exist (NotFound)."""

    def __init__(
        self,
        store: JobStore,
        settings: Settings,
        queue: Callable[[Sequence[Job]], Mapping[str, QueueInfo]] = lambda _jobs: {},
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._queue, self._wake = queue, wake

    @property
    def store(self) -> JobStore:
        """The store below."""
        return self._store

    def check(self, principal: Principal, spec: AnySpec) -> None:
        """SpecError when the spec can never run in this lab or project, or may not."""
        project = principal.project
        problems = [*untrusted(spec.plain(), self._settings, project, self._has_job(project))]
        problems += overruns(spec)
        if self._settings.capacity_declared:
            problems += misfits(spec, capacity(self._settings), "this lab has {} in all")
        quota = self._settings.quota(project).resources
        problems += misfits(spec, quota, f"project {project} may hold {{}} at once")
        if problems:
            raise SpecError(problems)

    def submit(
        self,
        principal: Principal,
        spec: AnySpec,
        *,
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
        record: IdempotencyRecord | None = None,
        retry_of: str | None = None,
        extends: str | None = None,
    ) -> Submitted:
        """Accept a job; the same record gives the same job, its key with another KeyReused."""
        _may_submit(principal)
        self.check(principal, spec)
        new = NewJob(
            id=new_job_id(),
            kind=spec.kind,
            name=spec.name,
            project=principal.project,
            owner=principal.owner,
            spec=spec.plain(),
            spec_digest=spec.digest(),
            labels=dict(labels or {}),
            priority=priority,
            retry_of=retry_of,
            extends=extends,
        )
        submitted = self._store.submit(new, idempotency=record)
        self._wake()
        return submitted

    def replayed(self, principal: Principal, record: IdempotencyRecord | None) -> Submitted | None:
        """The answer that a request had before, whatever has changed since; None for a new one."""
        if record is None:
            return None
        job = self._store.made_by(principal.project, principal.owner, record)
        return None if job is None else Submitted(job, replayed=True)

    def get(self, principal: Principal, job_id: str) -> Job:
        """One job of the principal's project."""
        return self._store.get(job_id, principal.project)

    def list(self, principal: Principal, query: JobQuery) -> Page:
        """Jobs of the principal's project, whatever project the query names."""
        return self._store.list(replace(query, project=principal.project))

    def cancel(self, principal: Principal, job_id: str) -> Job:
        """End a job; a finished one comes back unchanged."""
        return self._change(principal, job_id, self._cancelled)

    def pause(self, principal: Principal, job_id: str) -> Job:
        """Stop a job at its next checkpoint so that it can go on later."""
        return self._change(principal, job_id, self._paused)

    def resume(self, principal: Principal, job_id: str) -> Job:
        """Put a paused job back into the queue."""
        return self._change(principal, job_id, self._resumed)

    def retry(
        self,
        principal: Principal,
        job_id: str,
        *,
        limits: Mapping[str, Any] | None = None,
        record: IdempotencyRecord | None = None,
    ) -> Submitted:
        """A new job with a finished one's spec and limits (some of them changed).

        It adopts what that one has: cells that SUCCEEDED, or the checkpoints of an unfinished run.
        """
        job = self._own(principal, job_id)
        if job.state not in TERMINAL:
            raise _refused(job, "retry")
        # One that never ran has nothing of its own; what it was to go on from may still be there.
        older = None if job.started_at else job.retry_of
        source = older if older and self._has_job(job.project)(older) else job.id
        return self.submit(
            principal,
            limited(parse_spec(job.spec), {**job.limits, **(limits or {})}),
            labels=job.labels,
            priority=job.priority,
            record=record,
            retry_of=source,
            extends=job.extends,
        )

    def extend(
        self,
        principal: Principal,
        job_id: str,
        additions: Mapping[str, Any],
        *,
        record: IdempotencyRecord | None = None,
    ) -> Submitted:
        """A new job with a finished study's runs and more; see `extend.extended`."""
        job = self._own(principal, job_id)
        spec = extended(limited(parse_spec(job.spec), job.limits), additions)
        if job.state not in TERMINAL:
            raise _refused(job, "extend")
        return self.submit(
            principal,
            spec,
            labels=job.labels,
            priority=job.priority,
            record=record,
            extends=job.id,
        )

    def edit(
        self,
        principal: Principal,
        job_id: str,
        version: int,
        *,
        labels: Mapping[str, str] | None = None,
        priority: int | None = None,
        limits: Mapping[str, Any] | None = None,
    ) -> Job:
        """Change labels, priority or some limits, also while it runs.

        Conflict when the job is no longer at ``version``.
        """
        job = self._own(principal, job_id)
        if job.version != version:
            raise Conflict(f"{job.id} is at version {job.version}, not {version}")
        if limits is not None:
            limits = {**job.limits, **limits}
            limited(parse_spec(job.spec), limits)
            if job.state in TERMINAL:
                raise _refused(job, "a change of its limits")
        owner = principal.owner
        changed = self._store.edit(
            job, actor=owner, labels=labels, priority=priority, limits=limits
        )
        if limits is not None and job.state is not State.QUEUED:
            folder = self._settings.folders.job(job.id)
            write_json(folder.limits, told_limits(changed, self._settings))
        self._wake()
        return changed

    def delete(self, principal: Principal, job_id: str) -> None:
        """Hide a finished job and remove its folder and checkpoints; MLflow keeps its runs.

        IllegalMove while a retry or an extension has not yet taken its runs over, or another
        job may read their weights.
        """
        job = self._own(principal, job_id)
        folder = self._settings.folders.job(job.id)
        self._store.hide(job, actor=principal.owner, runs=sent_run_ids(folder))
        runs = list(folder.each_run())
        told = job.settled or not any(run.spool.exists() for run in runs)
        if told and not any(run.elsewhere.exists() for run in runs):
            with suppress(OSError):  # the settler does it again, and what has to wait
                remove(folder.root)
        self._wake()

    def view(self, job: Job) -> dict[str, Any]:
        """A job as REST shows it."""
        return self._views([job], {job.id: self._store.history(job.id)})[0]

    def views(self, jobs: Sequence[Job]) -> Sequence[dict[str, Any]]:
        """Several jobs as REST shows them."""
        return self._views(jobs, self._store.histories(job.id for job in jobs))

    def _views(
        self, jobs: Sequence[Job], histories: Mapping[str, Sequence[Event]]
    ) -> Sequence[dict[str, Any]]:
        queued = [job for job in jobs if job.state is State.QUEUED]
        queue = self._queue(queued) if queued else {}
        return [job_view(job, histories[job.id], queue.get(job.id), self._settings) for job in jobs]

    def _has_job(self, project: str) -> Callable[[str], bool]:
        def has(job_id: str) -> bool:
            with suppress(NotFound):
                self._store.get(job_id, project)
                return True
            return False

        return has

    def _change(self, principal: Principal, job_id: str, change: Callable[[Job, str], Job]) -> Job:
        """Apply a change to the job as it is now; again when somebody came between."""
        for _ in range(TRIES):
            job = self._own(principal, job_id)
            try:
                changed = change(job, principal.owner)
            except Conflict:
                continue
            self._wake()
            return changed
        raise Conflict(f"{job_id} keeps changing; ask again")

    def _cancelled(self, job: Job, actor: str) -> Job:
        if job.state in TERMINAL or job.intent is Intent.CANCELLED:
            return job
        if job.state in (State.QUEUED, State.PAUSED):
            return self._move(job, State.CANCELLED, actor, "cancel")
        return self._stopping(job, actor, "cancel", Intent.CANCELLED)

    def _paused(self, job: Job, actor: str) -> Job:
        if "pause" not in allowed_actions(job.state):
            raise _refused(job, "pause")
        if job.state is State.QUEUED:
            return self._move(job, State.PAUSED, actor, "pause")
        return self._stopping(job, actor, "pause", Intent.PAUSED)

    def _resumed(self, job: Job, actor: str) -> Job:
        if job.state is not State.PAUSED:
            raise _refused(job, "resume")
        return self._move(job, State.QUEUED, actor, "resume")

    def _stopping(self, job: Job, actor: str, verb: str, intent: Intent) -> Job:
        moved = self._move(job, State.STOPPING, actor, verb, intent=intent)
        with suppress(OSError):  # the reconciler asks again
            request_stop(self._settings.folders.job(job.id), job.attempt, intent)
        return moved

    def _move(self, job: Job, to: State, actor: str, verb: str, **columns: Any) -> Job:
        columns.setdefault("intent", None)
        return self._store.move(
            job, to, actor=actor, verb=verb, reason_code=ReasonCode.USER_REQUEST,
            message=f"{verb} asked by {actor}", **columns,
        )  # fmt: skip

    def _own(self, principal: Principal, job_id: str) -> Job:
        job = self._store.get(job_id, principal.project)
        _may_submit(principal)
        if principal.role is not Role.ADMIN and job.owner != principal.owner:
            raise Forbidden(f"{job_id} is {job.owner}'s; only its owner and admins change it")
        return job


def _may_submit(principal: Principal) -> None:
    if principal.role is Role.VIEWER:
        raise Forbidden(f"{principal.owner} may look at {principal.project}, not change it")


def _refused(job: Job, action: str) -> IllegalMove:
    allowed = allowed_actions(job.state, job.kind)
    return IllegalMove(
        f"{job.id} is {job.state}, so {action} is not possible; possible: {', '.join(allowed)}",
        state=job.state,
        allowed=allowed,
    )
