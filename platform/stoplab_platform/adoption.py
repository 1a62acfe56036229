"""What a new job takes over from the one it goes on from: finished cells, or a begun run."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any

from stoplab_platform.elsewhere import adopt_places
from stoplab_platform.files import write_atomic
from stoplab_platform.handoff import last_result
from stoplab_platform.jobs.models import Job
from stoplab_platform.jobs.states import STUDIES, ReasonCode
from stoplab_platform.ledger import Cell, CellState, Ledger
from stoplab_platform.paths import Home, JobFolder, RunFolder
from stoplab_platform.tracking.base import flatten
from stoplab_platform.tracking.lines import whole_lines

RETOLD = ("start", "metrics", "tags")
"""Lines of a spool that hold for a run that goes on elsewhere."""
SPOILT = (ReasonCode.DIVERGED, ReasonCode.COLLAPSED)
"""Ends of runs whose last checkpoints are not worth going on from."""


def adopt(job: Job, home: Home) -> None:
    """Prepare a new job's folder; may be repeated until its first attempt has begun."""
    folder = home.job(job.id)
    # What a retry has, and what that was to extend itself.
    for source in (job.retry_of, job.extends):
        if source is not None and job.kind in STUDIES:
            adopt_cells(home.job(source), folder)
    if job.retry_of is not None and job.kind == "pretrain":
        adopt_run(home.job(job.retry_of), folder, job)


def adopt_cells(source: JobFolder, target: JobFolder) -> None:
    """Give a study the finished cells of the one it goes on from, so that it does not run them.

    The others come as if they had never begun: a search that draws as it goes knows its points
    from the ledger alone, and would not come back to one that failed. Finished ones bring their
    checkpoints, for exports, evaluations and the next legs of a population: the other job may be
    deleted.
    """
    cells = Ledger(source).cells()
    finished = _finished(cells)
    Ledger(target).plan([cell.model_copy(update={"adopted": True}) for cell in finished])
    Ledger(target).plan([_afresh(c) for c in cells if c not in finished and c.generation is None])
    for cell in finished:
        before, after = source.run(cell.id), target.run(cell.id)
        for file in _kept(before):
            write_atomic(after.root / file.name, file.read_text())
        _link_checkpoints(before, after)


def adopt_run(source: JobFolder, target: JobFolder, job: Job) -> None:
    """Give a run the checkpoints of an unfinished one with its spec, and what that one logged.

    One that diverged or collapsed is begun anew: what it saved last is no better.
    """
    before, after = source.run("run"), target.run("run")
    result = last_result(source)
    spoilt = result is not None and result.reason_code in SPOILT
    if before.summary.exists() or spoilt or after.spool.exists():
        return
    _link_checkpoints(before, after)
    if before.scores.exists():
        write_atomic(after.scores, before.scores.read_text())
    lines = [line for line in _said(before) if line["verb"] in RETOLD]
    for line in lines:
        if line["verb"] == "start":  # it is another run in the tracker
            line["tags"]["stoplab.job_id"] = job.id
            line["params"] = flatten(job.spec)
    write_atomic(after.spool, "".join(json.dumps(line) + "\n" for line in lines))


def _said(run: RunFolder) -> list[dict[str, Any]]:
    """What a run has said to its spool."""
    if not run.spool.exists():
        return []
    with run.spool.open("rb") as file:
        return [line for line, _ in whole_lines(file) if line is not None]


def _finished(cells: Sequence[Cell]) -> list[Cell]:
    """Cells that no later start runs: of a population also the failed ones it went past."""
    newest = max((cell.generation or 0 for cell in cells), default=0)
    kept = (CellState.SUCCEEDED, CellState.PRUNED)
    return [c for c in cells if c.state in kept or (c.generation or 0) < newest]


def _afresh(cell: Cell) -> Cell:
    """The cell with nothing but its place in the study."""
    kept = {name: getattr(cell, name) for name in ("id", "index", "arm", "point", "seed")}
    infeasible = cell.state is CellState.INFEASIBLE
    return Cell(**kept, **({"state": cell.state, "error": cell.error} if infeasible else {}))


def _kept(run: RunFolder) -> Iterator[Path]:
    """What a report needs of a finished run, and who opens its weights."""
    told = (run.spec, run.summary, run.evaluation, run.predictions, run.scores)
    for file in (*told, run.spool, run.spool_sent):
        if file.exists():
            yield file


def _link_checkpoints(before: RunFolder, after: RunFolder) -> None:
    adopt_places(before, after)
    if before.checkpoints.exists():
        copytree(before.checkpoints, after.checkpoints, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    """The same file under another name: checkpoints are large, and never written to again."""
    try:
        os.link(source, target)
    except FileExistsError:
        return
    except OSError:  # a file system that knows no second names: a copy, whole or not at all
        draft = f"{target}.draft"
        copyfile(source, draft)
        os.replace(draft, target)
