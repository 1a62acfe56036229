"""A sweep or comparison from its spec to its result, over as many starts as it takes.

The ledger is the only memory: each start runs the cells that have not succeeded, and goes on
with those that an earlier start left half done.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Protocol

from stoplab_platform.admission import check_runs
from stoplab_platform.errors import SpecError
from stoplab_platform.exits import Exit
from stoplab_platform.files import read_json, write_atomic
from stoplab_platform.jobs.models import Intent
from stoplab_platform.ledger import Cell, CellState, Ledger
from stoplab_platform.paths import JobFolder
from stoplab_platform.specs import SweepSpec, load_spec
from stoplab_platform.tracking import drain
from stoplab_platform.tracking.base import Status
from stoplab_platform.tracking.sender import sent_run_id
from stoplab_sweeps.cells import (
    Execute,
    Start,
    StudySpec,
    expected,
    known_points,
    plan,
    unfinished,
)
from stoplab_sweeps.feed import Feed, Propose, lost
from stoplab_sweeps.limits import current_limits
from stoplab_sweeps.outcome import Outcome, sum_up
from stoplab_sweeps.parent import Parent, parent_identity
from stoplab_sweeps.watch import Watch

log = logging.getLogger("stoplab")

STOPPED: dict[str | None, Status | None] = {Intent.PAUSED: None, Intent.FAILED: "FAILED"}
"""What the tracker is told of a study that was asked to stop; of any other intent KILLED."""
DRAIN_S = 20.0  # for all spools together; a supervisor goes on with what is left


class Schedule(Protocol):
    """Runs cells somewhere: `stoplab_sweeps.tuning.run_in_tune`, or one by one in a test."""

    def __call__(self, feed: Feed, spec: StudySpec, start: Start, execute: Execute) -> None:
        """Run what the feed gives; return when it is over and all that ran has ended."""


def run_study(spec: StudySpec, start: Start, *, schedule: Schedule, execute: Execute) -> Exit:
    """Run what is left of a study and sum up; SpecError before anything runs."""
    folder, ledger = start.folder, Ledger(start.folder)
    planned = plan(spec)
    if not ledger.cells():  # one that goes on may have had its limits lowered, to end it
        check_runs(spec, current_limits(spec.limits, folder))
    _claim(spec, folder)
    ledger.plan(planned)
    _interrupted(ledger, folder)
    ledger.plan(_planned_on_the_way(spec, ledger.cells()))
    feed = Feed(spec, folder, _propose(spec))
    identity = parent_identity(spec, start.job_id, start.attempt)
    parent = Parent(spec, folder, identity, start.tracking_uri)
    try:
        if feed.remaining() or feed.more(ledger.cells()):
            with Watch(spec, folder, log.info):
                schedule(feed, spec, start, execute)
        _settle(spec, start, ledger)
        cells = ledger.cells()
        outcome = sum_up(spec, folder, cells)
        status, code = _end(spec, feed, folder, cells, outcome)
        parent.close(status, outcome.metrics, outcome.files)
        return code
    except BaseException:
        parent.close("FAILED", {}, [])
        raise


def _claim(spec: StudySpec, folder: JobFolder) -> None:
    """The folder is this spec's: the ledger of another study must not be gone on with."""
    if not folder.spec.exists():
        write_atomic(folder.spec, spec.to_yaml())
    elif load_spec(folder.spec).digest() != spec.digest():
        raise SpecError.of(
            "name", f"{folder.root} holds another study; a changed spec is a new job"
        )


def _interrupted(ledger: Ledger, folder: JobFolder) -> None:
    """Cells whose start was killed ran until they were last heard of, not until now."""
    for cell in ledger.cells():
        if cell.state is CellState.RUNNING:
            heard = folder.run(cell.id).progress
            last = datetime.fromtimestamp(heard.stat().st_mtime, UTC) if heard.exists() else None
            ledger.update(cell.id, state=CellState.STOPPED, at=last or cell.resumed_at)


def _settle(spec: StudySpec, start: Start, ledger: Ledger) -> None:
    """Send what runs have spooled; complete cells whose process could not do it itself."""
    deadline = time.monotonic() + DRAIN_S
    for run in start.folder.each_run():
        drain(run, start.tracking_uri, timeout_s=max(0.0, deadline - time.monotonic()))
    for cell in ledger.cells():
        if cell.state is CellState.RUNNING:
            stopped = {"state": CellState.STOPPED}
            failed = {"state": CellState.FAILED, "error": lost(spec)}
            ledger.update(cell.id, **(stopped if start.folder.stop.exists() else failed))
        elif cell.mlflow_run_id is None and cell.state is CellState.SUCCEEDED:
            ledger.update(cell.id, mlflow_run_id=sent_run_id(start.folder.run(cell.id)))


def _end(
    spec: StudySpec, feed: Feed, folder: JobFolder, cells: Sequence[Cell], outcome: Outcome
) -> tuple[Status | None, Exit]:
    """How the study ended, for the tracker and for who started it."""
    left = unfinished(cells)
    more = feed.more(cells)
    if not left and not more:
        return ("FAILED", Exit.FAILED) if outcome.refused else ("FINISHED", Exit.OK)
    if folder.stop.exists():
        intent = (read_json(folder.stop) or {}).get("intent")
        return STOPPED.get(intent, "KILLED"), Exit.STOPPED
    waiting = sum(cell.state is CellState.PENDING for cell in left)
    reached = feed.reached(cells)
    if waiting or more:
        unplanned = max(more, (expected(spec) or 0) - len(cells))
        reason = reached or "what they go on from is not there"
        log.warning("%d runs did not start: %s", waiting + unplanned, reason)
    # A sweep may be planned to end at a limit; a comparison's blocks are its design.
    failed = any(cell.state is CellState.FAILED for cell in left)
    if reached and not failed and isinstance(spec, SweepSpec):
        return "FINISHED", Exit.OK
    return "FAILED", Exit.FAILED


def _planned_on_the_way(spec: StudySpec, cells: Sequence[Cell]) -> list[Cell]:
    """What earlier starts drew, and may have been killed before they had it all written down."""
    if not isinstance(spec, SweepSpec) or expected(spec) is None:
        return []
    if spec.scheduler.kind == "pbt":
        from stoplab_sweeps.population import interrupted

        return interrupted(spec, cells)
    return known_points(spec, cells)


def _propose(spec: StudySpec) -> Propose | None:
    """What draws further points as results come; None where the plan knows them all."""
    if not isinstance(spec, SweepSpec) or expected(spec) is None:
        return None
    if spec.scheduler.kind == "pbt":
        from stoplab_sweeps.population import next_generation

        return functools.partial(next_generation, spec)
    from stoplab_sweeps.search import propose  # Optuna costs a second to import

    return functools.partial(propose, spec)
