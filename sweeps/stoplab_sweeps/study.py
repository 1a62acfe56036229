"""A sweep or comparison from its spec to its result, over as many starts as it takes.

The ledger is the only memory: each start runs the cells that have not succeeded, and goes on
with those that an earlier start left half done.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from stoplab_platform.errors import SpecError
from stoplab_platform.exits import Exit
from stoplab_platform.jobs.models import Intent
from stoplab_platform.ledger import Cell, CellState, Ledger
from stoplab_platform.paths import JobFolder, read_json, write_atomic
from stoplab_platform.specs import ComparisonSpec, load_spec
from stoplab_platform.specs.run import ComputeSpec
from stoplab_platform.tracking import drain
from stoplab_platform.tracking.base import Status
from stoplab_platform.tracking.sender import sent_run_id
from stoplab_sweeps.cells import Execute, Planned, StudySpec, Task, identity_of, plan
from stoplab_sweeps.outcome import Outcome, sum_up
from stoplab_sweeps.parent import Parent, parent_identity
from stoplab_sweeps.watch import Watch

log = logging.getLogger("stoplab")

DONE = (CellState.SUCCEEDED, CellState.INFEASIBLE)
DRAIN_S = 20.0  # for all spools together; a supervisor goes on with what is left


class Schedule(Protocol):
    """Runs tasks somewhere: `stoplab_sweeps.tuning.run_in_tune`, or one by one in a test."""

    def __call__(
        self,
        tasks: Sequence[Task],
        folder: JobFolder,
        compute: ComputeSpec,
        *,
        max_concurrent: int | None,
        execute: Execute,
        go_on: Callable[[], bool],
    ) -> None:
        """Return when all that could run has ended; start none once ``go_on`` is false."""


@dataclass(frozen=True)
class Start:
    """One start of a study: whose, where, and the how-manyeth."""

    job_id: str
    folder: JobFolder
    attempt: int
    tracking_uri: str


def run_study(spec: StudySpec, start: Start, *, schedule: Schedule, execute: Execute) -> Exit:
    """Run what is left of a study and sum up; SpecError before anything runs."""
    folder, ledger = start.folder, Ledger(start.folder)
    planned = plan(spec)
    _claim(spec, folder)
    ledger.plan([cell for cell, _ in planned])
    identity = parent_identity(spec, start.job_id, start.attempt)
    parent = Parent(spec, folder, identity, start.tracking_uri)
    try:
        tasks = _tasks(spec, planned, ledger.cells(), start)
        if tasks:
            with Watch(folder, _metric(spec), log.info):
                schedule(
                    tasks,
                    folder,
                    spec.base.compute,
                    max_concurrent=spec.limits.max_concurrent,
                    execute=execute,
                    go_on=lambda: not folder.stop.exists() and spent(spec, ledger.cells()) is None,
                )
        _settle(spec, start, ledger)
        cells = ledger.cells()
        outcome = sum_up(spec, folder, cells)
        status, code = _end(spec, folder, cells, outcome)
        parent.close(status, outcome.metrics, outcome.files)
        return code
    except BaseException:
        parent.close("FAILED", {}, [])
        raise


def spent(spec: StudySpec, cells: Sequence[Cell], now: datetime | None = None) -> str | None:
    """Which limit is reached, in words; None while there is none.

    Hours count from the first cell's start. No new cell starts then; those that run may end.
    """
    now = now or datetime.now(UTC)
    limits, compute = spec.limits, spec.base.compute
    begun = [(c.started_at, c.finished_at or now) for c in cells if c.started_at is not None]
    hours = [(end - begin).total_seconds() / 3600 for begin, end in begun]
    wall = (now - min(begin for begin, _ in begun)).total_seconds() / 3600 if begun else 0.0
    if limits.wall_hours is not None and wall >= limits.wall_hours:
        return f"limits.wall_hours ({limits.wall_hours:g}) is reached"
    gpu_hours = sum(hours) * compute.gpus_per_worker * compute.workers
    if limits.gpu_hours is not None and gpu_hours >= limits.gpu_hours:
        return f"limits.gpu_hours ({limits.gpu_hours:g}) is reached"
    return None


def _claim(spec: StudySpec, folder: JobFolder) -> None:
    """The folder is this spec's: the ledger of another study must not be gone on with."""
    if not folder.spec.exists():
        write_atomic(folder.spec, spec.to_yaml())
    elif load_spec(folder.spec).digest() != spec.digest():
        raise SpecError.of(
            "name", f"{folder.root} holds another study; a changed spec is a new job"
        )


def _tasks(
    spec: StudySpec, planned: Sequence[Planned], known: Sequence[Cell], start: Start
) -> list[Task]:
    left = {cell.id for cell in known if cell.state not in DONE}
    tasks = []
    for cell, run in planned:
        if cell.id in left and run is not None:
            identity = identity_of(spec, cell, job_id=start.job_id, attempt=start.attempt)
            tasks.append(Task(cell.id, run.plain(), dataclasses.asdict(identity)))
    return tasks


def _settle(spec: StudySpec, start: Start, ledger: Ledger) -> None:
    """Send what runs have spooled; complete cells whose process could not do it itself."""
    deadline = time.monotonic() + DRAIN_S
    for run in start.folder.each_run():
        drain(run, start.tracking_uri, timeout_s=max(0.0, deadline - time.monotonic()))
    lost = f"its process died more often than {spec.base.compute.max_failures} times"
    for cell in ledger.cells():
        if cell.state is CellState.RUNNING:
            stopped = start.folder.stop.exists()
            changes = {"state": CellState.STOPPED} if stopped else _failed(lost)
            ledger.update(cell.id, **changes)
        elif cell.mlflow_run_id is None and cell.state is CellState.SUCCEEDED:
            ledger.update(cell.id, mlflow_run_id=sent_run_id(start.folder.run(cell.id)))


def _failed(reason: str) -> dict[str, Any]:
    return {"state": CellState.FAILED, "error": f"{reason} (compute.max_failures)"}


def _end(
    spec: StudySpec, folder: JobFolder, cells: Sequence[Cell], outcome: Outcome
) -> tuple[Status | None, Exit]:
    """How the study ended, for the tracker and for who started it."""
    left = [cell for cell in cells if cell.state not in DONE]
    if not left:
        return ("FAILED", Exit.FAILED) if outcome.refused else ("FINISHED", Exit.OK)
    if folder.stop.exists():
        paused = (read_json(folder.stop) or {}).get("intent") == Intent.PAUSED
        return (None if paused else "KILLED"), Exit.STOPPED
    waiting = sum(cell.state is CellState.PENDING for cell in left)
    if waiting:
        log.error("%d runs did not start: %s", waiting, spent(spec, cells))
    return "FAILED", Exit.FAILED


def _metric(spec: StudySpec) -> str:
    return spec.primary.metric if isinstance(spec, ComparisonSpec) else spec.objective.metric
