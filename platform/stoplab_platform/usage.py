"""What a job has used of its limits, by its own history: pure functions.

The time counts in which it was RUNNING, over all attempts; queueing, starts, recoveries and pauses
do not. GPU-hours are that time times the GPUs it has reserved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from stoplab_platform.jobs.models import Event, Job
from stoplab_platform.jobs.states import STUDIES, ReasonCode, State

STUDY_FACTOR = 2
"""A study's own driver starts no run beyond its limits, and lets those that run end. Only one
that has used so many times its limit is stopped from outside."""


@dataclass(frozen=True)
class Exceeded:
    """A limit that is used up."""

    code: ReasonCode
    message: str


def has_limits(job: Job) -> bool:
    """Whether hours of the job are limited."""
    limits = limits_of(job)
    return limits.get("wall_hours") is not None or limits.get("gpu_hours") is not None


def limits_of(job: Job) -> Mapping[str, Any]:
    """The limits of its spec, as they were changed since."""
    return {**job.spec.get("limits", {}), **job.limits}


def ran_hours(history: Sequence[Event], now: datetime) -> float:
    """Hours in RUNNING by ``now``; ``history`` holds the state changes, oldest first."""
    ends = [event.at for event in history[1:]] + [now]
    seconds = sum(
        max(0.0, (end - event.at).total_seconds())
        for event, end in zip(history, ends, strict=True)
        if event.to_state is State.RUNNING
    )
    return seconds / 3600


def exceeded(job: Job, history: Sequence[Event], gpus: float, now: datetime) -> Exceeded | None:
    """The limit that a running job has used up; ``gpus`` are those it has reserved."""
    limits, hours = limits_of(job), ran_hours(history, now)
    factor = STUDY_FACTOR if job.kind in STUDIES else 1
    both = (
        ("wall_hours", ReasonCode.TIME_LIMIT, hours, "h"),
        ("gpu_hours", ReasonCode.BUDGET, hours * gpus, "GPU-hours"),
    )
    for field, code, used, unit in both:
        limit = limits.get(field)
        if limit is not None and used >= factor * limit:
            return Exceeded(code, _sentence(job.kind, field, limit, used, unit))
    return None


def _sentence(kind: str, field: str, limit: float, used: float, unit: str) -> str:
    kept = {
        "pretrain": "a retry goes on from its last checkpoint, under the same limit or a higher",
        "evaluate": "a retry begins anew; give it a higher limit",
    }.get(kind, "a retry adopts its finished runs; give it a higher limit")
    return f"limits.{field} is {limit:g}, and the job used {used:.3g} {unit}; {kept}"
