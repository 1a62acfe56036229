"""Which queued jobs may start: declared capacity minus the reservations of active jobs.

Pure functions. What is free on the cluster at this moment is not asked: it races with other
submits and dead-locks with autoscaling.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache, lru_cache
from typing import Any

from stoplab_platform.errors import Problem, SpecError
from stoplab_platform.extend import limited
from stoplab_platform.jobs.models import Job
from stoplab_platform.jobs.states import STUDIES
from stoplab_platform.quotas import Quota
from stoplab_platform.resources import SLACK, Resources
from stoplab_platform.settings import Settings
from stoplab_platform.specs import AnySpec, ComparisonSpec, SweepSpec, parse_spec
from stoplab_platform.specs.run import ComputeSpec
from stoplab_platform.specs.sweep import LimitsSpec

PASSING = timedelta(minutes=10)
"""How long a waiting job lets smaller ones of its priority pass."""
NO_QUOTA = Quota()


@dataclass(frozen=True)
class QueueInfo:
    """Why a job waits; ``position`` counts from 1."""

    position: int
    reason: str


@dataclass(frozen=True)
class Claim:
    """A job as admission sees it."""

    id: str
    priority: int
    created_at: datetime
    demand: Resources
    project: str = "default"


def capacity(settings: Settings) -> Resources:
    """What jobs may reserve; this machine's CPUs where nothing is declared."""
    cpus = settings.capacity_cpus
    return Resources(float(os.cpu_count() or 1) if cpus is None else cpus, settings.capacity_gpus)


def demand(spec: AnySpec, capacity: Resources, quota: Quota = NO_QUOTA) -> Resources:
    """What a job reserves: its workers; for a study as many trials as run at a time.

    Never more than there is: a job larger than an undeclared capacity runs alone.
    """
    trial = one_trial(spec).within(capacity)
    if not isinstance(spec, SweepSpec | ComparisonSpec):
        return trial
    at_once = max(1, trial.times_in(capacity.within(quota.resources)))
    if spec.limits.max_concurrent is not None:
        at_once = min(at_once, spec.limits.max_concurrent)
    return trial * max(1, min(at_once, spec.most_at_once(), spec.limits.trials))


def told_limits(job: Job, settings: Settings) -> dict[str, Any]:
    """What a study's driver is told beside its spec: what was changed, and its project's quota."""
    told = dict(job.limits)
    quota = settings.quota(job.project)
    if job.kind not in STUDIES or (quota.cpus is None and quota.gpus is None):
        return told
    try:
        spec = limited(parse_spec(job.spec), job.limits)
    except SpecError:
        return told  # of another release; its run says so
    assert isinstance(spec, SweepSpec | ComparisonSpec)
    # It may hold a part of the cluster only, and would take all that it finds free.
    at_once = max(1, one_trial(spec).times_in(quota.resources))
    return {**told, "max_concurrent": min(at_once, spec.limits.max_concurrent or at_once)}


def one_trial(spec: AnySpec) -> Resources:
    """What one run of the spec needs."""
    compute = _compute(spec)
    return Resources(compute.cpus_per_worker, compute.gpus_per_worker) * compute.workers


def check_runs(spec: AnySpec, limits: LimitsSpec | None = None) -> None:
    """SpecError when a study has more runs than its limits (or the given ones) allow."""
    if problems := list(overruns(spec, limits)):
        raise SpecError(problems)


def overruns(spec: AnySpec, limits: LimitsSpec | None = None) -> Iterator[Problem]:
    """Where a study has more runs than its limits (or the given ones) allow."""
    if isinstance(spec, SweepSpec | ComparisonSpec):
        trials = (limits or spec.limits).trials
        if (runs := spec.num_runs()) > trials:
            text = f"{trials}: the study has {runs} runs; allow them or vary less"
            yield Problem(("limits", "trials"), text)


def misfits(spec: AnySpec, capacity: Resources, there_is: str) -> Iterator[Problem]:
    """Where one run of the spec needs more than there is; ``there_is`` says so of a number."""
    compute = _compute(spec)
    base = ("base",) if isinstance(spec, SweepSpec | ComparisonSpec) else ()
    trial = one_trial(spec)
    both = (
        ("CPUs", "cpus", trial.cpus, capacity.cpus),
        ("GPUs", "gpus", trial.gpus, capacity.gpus),
    )
    for unit, name, need, have in both:
        if need > have + SLACK:
            field = "workers" if compute.workers > 1 else f"{name}_per_worker"
            yield Problem(
                (*base, "compute", field),
                f"{compute.workers} workers need {need:g} {unit}; {there_is.format(f'{have:g}')}",
                ((*base, "compute", f"{name}_per_worker"),),
            )


class Admission:
    """Who may start now, and why the others wait. Priority goes first, then age.

    A job that does not fit lets smaller ones of its own priority pass until it has waited
    `PASSING`; lower priorities never pass it. One that its project's quota keeps out holds up
    nobody.
    """

    def __init__(
        self,
        active: Sequence[Claim],
        capacity: Resources,
        now: datetime,
        quota: Callable[[str], Quota] = lambda _project: NO_QUOTA,
    ) -> None:
        self._capacity, self._now, self._quota = capacity, now, cache(quota)
        self._used = sum((one.demand for one in active), Resources())
        self._held: defaultdict[str, Resources] = defaultdict(Resources)
        for one in active:
            self._held[one.project] += one.demand
        self._jobs = Counter(one.project for one in active)
        self._blocked: Claim | None = None
        self._last: Claim | None = None

    def admit(self, queued: Sequence[Claim]) -> tuple[list[str], dict[str, QueueInfo]]:
        """The ids of those that may start, and what the others are told."""
        told = {one.id: self.place(one) for one in sorted(queued, key=_turn)}
        admitted = [name for name, reason in told.items() if reason is None]
        waiting = ((name, reason) for name, reason in told.items() if reason is not None)
        places = enumerate(waiting, start=len(admitted) + 1)
        return admitted, {name: QueueInfo(place, reason) for place, (name, reason) in places}

    def comes_last(self, one: Claim) -> bool:
        """Whether a job's turn is after all that have been placed, so that it can be placed."""
        return self._last is None or _turn(self._last) < _turn(one)

    def place(self, one: Claim) -> str | None:
        """Why the job waits whose turn it is; None when it may start, and then it counts."""
        self._last = one
        if full := self._full(one):
            return f"needs {one.demand}; project {one.project} holds {full}"
        first = self._blocked
        may_pass = first is None or (
            first.priority == one.priority and self._now - first.created_at < PASSING
        )
        if may_pass and (self._used + one.demand).fits(self._capacity):
            self._used += one.demand
            self._held[one.project] += one.demand
            self._jobs[one.project] += 1
            return None
        self._blocked = first or one
        if first is not None and not may_pass:
            who = first.id if first.project == one.project else "a job of another project"
            return f"waits behind {who}, which is next"
        return _short_of(one.demand, self._used, self._capacity)

    def _full(self, one: Claim) -> str:
        """Which parts of its project's quota the job would exceed; nothing where none."""
        held, jobs = self._held[one.project], self._jobs[one.project]
        return " and ".join(self._quota(one.project).keeps_out(one.demand, held, jobs))


def _turn(one: Claim) -> tuple[int, datetime, str]:
    return -one.priority, one.created_at, one.id


def _compute(spec: AnySpec) -> ComputeSpec:
    return spec.base.compute if isinstance(spec, SweepSpec | ComparisonSpec) else spec.compute


@lru_cache(maxsize=256)
def _short_of(demand: Resources, used: Resources, capacity: Resources) -> str:
    """In a long queue many want the same."""
    return f"needs {demand}; {used} of {capacity} are reserved"
