"""What a finished job really took, beside what was estimated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

from stoplab_platform.admission import one_trial
from stoplab_platform.estimates import Estimate
from stoplab_platform.jobs.models import Event, Job
from stoplab_platform.jobs.states import STUDIES, State
from stoplab_platform.ledger import Cell
from stoplab_platform.specs import AnySpec

HOURS = ("gpu_hours", "cpu_hours", "wall_hours")
AT_WORK = (State.RUNNING, State.RECOVERING, State.STOPPING)


@dataclass(frozen=True)
class Spent:
    """Hours that a job took; waiting and pauses are none."""

    gpu_hours: float
    cpu_hours: float
    wall_hours: float


def spent(job: Job, spec: AnySpec, history: Sequence[Event], cells: Sequence[Cell]) -> Spent:
    """What a job that has ended took: its own runs' time, and its own on the clock."""
    ended = job.finished_at
    assert ended is not None, f"{job.id} has not ended"
    wall = _at_work(history, ended)
    runs = wall
    if job.kind in STUDIES:
        runs = sum(cell.seconds(ended) for cell in cells if not cell.adopted) / 3600
    trial = one_trial(spec)
    return Spent(runs * trial.gpus, runs * trial.cpus, wall)


def beside(
    job: Job, spec: AnySpec, told: Estimate, history: Sequence[Event], cells: Sequence[Cell]
) -> dict[str, Any]:
    """The estimate, what was measured, and the error: measured over estimated, less 1.

    ``reason`` says why one of them is null.
    """
    found = {"estimate": told.plain(), "measured": None, "error": None, "within": None}
    if job.state is not State.SUCCEEDED:
        return {
            **found,
            "reason": f"{job.id} is {job.state}: only a job that succeeded is compared",
        }
    took = spent(job, spec, history, cells)
    found["measured"] = vars(took)
    adopted = sum(cell.adopted for cell in cells)
    if adopted:
        return {**found, "reason": f"{adopted} of {len(cells)} runs were adopted, not run"}
    if told.wall_hours is None:
        return {**found, "reason": "no hours were estimated"}
    pairs = {name: (getattr(took, name), getattr(told, name)) for name in HOURS}
    found["error"] = {
        name: measured / band.value - 1 if band.value else None
        for name, (measured, band) in pairs.items()
    }
    found["within"] = {
        name: band.low <= measured <= band.high for name, (measured, band) in pairs.items()
    }
    return {**found, "reason": None}


def _at_work(history: Sequence[Event], ended: datetime) -> float:
    """Hours between moves in which an attempt was alive."""
    moves = [(event.to_state, event.at) for event in history]
    seconds = sum(
        (until - since).total_seconds()
        for (state, since), (_, until) in pairwise([*moves, (None, ended)])
        if state in AT_WORK
    )
    return seconds / 3600
