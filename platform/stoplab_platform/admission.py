"""Which queued jobs may start: declared capacity minus the reservations of active jobs.

Pure functions. What is free on the cluster at this moment is not asked: it races with other
submits and dead-locks with autoscaling.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import floor

from stoplab_platform.errors import Problem, SpecError
from stoplab_platform.jobs.models import Job
from stoplab_platform.settings import Settings
from stoplab_platform.specs import AnySpec, ComparisonSpec, SweepSpec
from stoplab_platform.specs.run import ComputeSpec
from stoplab_platform.specs.sweep import LimitsSpec

PASSING = timedelta(minutes=10)
"""How long a waiting job lets smaller ones of its priority pass."""
SLACK = 1e-9  # sums of fractional reservations


@dataclass(frozen=True)
class Resources:
    """CPUs and GPUs."""

    cpus: float = 0
    gpus: float = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.cpus + other.cpus, self.gpus + other.gpus)

    def __mul__(self, times: float) -> Resources:
        return Resources(self.cpus * times, self.gpus * times)

    def fits(self, capacity: Resources) -> bool:
        """Whether both are within ``capacity``."""
        return self.cpus <= capacity.cpus + SLACK and self.gpus <= capacity.gpus + SLACK

    def times_in(self, capacity: Resources) -> int:
        """How often this fits into ``capacity``."""
        ratios = [
            have / need
            for have, need in ((capacity.cpus, self.cpus), (capacity.gpus, self.gpus))
            if need > 0
        ]
        return floor(min(ratios, default=0) + SLACK)

    def within(self, capacity: Resources) -> Resources:
        """This, clipped to ``capacity``."""
        return Resources(min(self.cpus, capacity.cpus), min(self.gpus, capacity.gpus))

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.cpus:g} CPUs{gpus}"


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


def capacity(settings: Settings) -> Resources:
    """What jobs may reserve; this machine's CPUs where nothing is declared."""
    cpus = settings.capacity_cpus
    return Resources(float(os.cpu_count() or 1) if cpus is None else cpus, settings.capacity_gpus)


def claim(job: Job, spec: AnySpec, capacity: Resources) -> Claim:
    """What a job asks for."""
    return Claim(job.id, job.priority, job.created_at, demand(spec, capacity))


def demand(spec: AnySpec, capacity: Resources) -> Resources:
    """What a job reserves: its workers; for a study as many trials as run at a time.

    Never more than there is: a job larger than an undeclared capacity runs alone.
    """
    trial = one_trial(spec).within(capacity)
    if not isinstance(spec, SweepSpec | ComparisonSpec):
        return trial
    at_once = max(1, trial.times_in(capacity))
    if spec.limits.max_concurrent is not None:
        at_once = min(at_once, spec.limits.max_concurrent)
    return trial * max(1, min(at_once, spec.most_at_once(), spec.limits.trials))


def one_trial(spec: AnySpec) -> Resources:
    """What one run of the spec needs."""
    compute = _compute(spec)
    return Resources(compute.cpus_per_worker, compute.gpus_per_worker) * compute.workers


def check_runs(spec: AnySpec, limits: LimitsSpec | None = None) -> None:
    """SpecError when a study has more runs than its limits (or the given ones) allow."""
    if not isinstance(spec, SweepSpec | ComparisonSpec):
        return
    trials = (limits or spec.limits).trials
    if (runs := spec.num_runs()) > trials:
        text = f"{trials}: the study has {runs} runs; allow them or vary less"
        raise SpecError([Problem(("limits", "trials"), text)])


def check_fits(spec: AnySpec, capacity: Resources) -> None:
    """SpecError when one run of the spec can never fit the declared capacity."""
    problems = list(_misfits(spec, capacity))
    if problems:
        raise SpecError(problems)


def admit(
    queued: Sequence[Claim], active: Sequence[Claim], capacity: Resources, now: datetime
) -> tuple[list[str], dict[str, QueueInfo]]:
    """Who may start now, and why the others wait. Priority goes first, then age.

    A job that does not fit lets smaller ones of its own priority pass until it has waited
    `PASSING`; lower priorities never pass it.
    """
    used = sum((one.demand for one in active), Resources())
    admitted: list[str] = []
    waiting: dict[str, QueueInfo] = {}
    blocked: Claim | None = None
    for one in sorted(queued, key=lambda c: (-c.priority, c.created_at, c.id)):
        may_pass = blocked is None or (
            blocked.priority == one.priority and now - blocked.created_at < PASSING
        )
        if may_pass and (used + one.demand).fits(capacity):
            used = used + one.demand
            admitted.append(one.id)
            continue
        behind = None if may_pass else blocked
        blocked = blocked or one
        reason = _reason(one, used, capacity, behind)
        waiting[one.id] = QueueInfo(len(waiting) + 1, reason)
    return admitted, waiting


def _compute(spec: AnySpec) -> ComputeSpec:
    return spec.base.compute if isinstance(spec, SweepSpec | ComparisonSpec) else spec.compute


def _misfits(spec: AnySpec, capacity: Resources) -> Iterator[Problem]:
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
                f"{compute.workers} workers need {need:g} {unit}; this lab has {have:g} in all",
                ((*base, "compute", f"{name}_per_worker"),),
            )


def _reason(one: Claim, used: Resources, capacity: Resources, behind: Claim | None) -> str:
    if behind is not None:
        return f"waits behind {behind.id}, which is next"
    return f"needs {one.demand}; {used} of {capacity} are reserved"
