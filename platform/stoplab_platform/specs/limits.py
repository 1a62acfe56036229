"""Limits of a job: where it ends whether it is done or not."""

from __future__ import annotations

from pydantic import Field

from stoplab_platform.specs.base import Spec

MOST_HOURS, MOST_RUNS = 1e9, 1_000_000


class JobLimits(Spec):
    """How much a job may use; what it waits in the queue is not counted."""

    wall_hours: float | None = Field(default=None, gt=0, le=MOST_HOURS)
    """Most hours of running, without pauses (of a study: on the clock since its first run began);
    null: no limit. Default null."""
    gpu_hours: float | None = Field(default=None, gt=0, le=MOST_HOURS)
    """Most GPU-hours, as reserved; null: no limit. Default null."""
