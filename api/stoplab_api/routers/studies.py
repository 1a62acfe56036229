"""What sweeps and comparisons find: their cells as a table, and a comparison's result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import Response

from stoplab_api.answers import Code, TrialListBody
from stoplab_api.auth import Caller
from stoplab_api.context import LabDep
from stoplab_api.examples import COMPARISON, TRIALS
from stoplab_api.problems import ApiProblem, documented
from stoplab_api.rendering import Json
from stoplab_platform.jobs.views import stamp
from stoplab_platform.ledger import Cell, CellState, Ledger
from stoplab_platform.paths import read_json

router = APIRouter(prefix="/jobs/{job_id}", tags=["studies"])

FIELDS: dict[str, Callable[[Cell], Any]] = {
    "index": lambda cell: cell.index,
    "seed": lambda cell: cell.seed,
    "state": lambda cell: cell.state,
    "arm": lambda cell: cell.arm or "",
}
"""What trials can be sorted by, beside any metric."""


@router.get(
    "/trials",
    response_model=TrialListBody,
    responses={
        200: {"content": {"application/json": {"example": TRIALS}}},
        **documented(Code.NOT_FOUND),
    },
)
def list_trials(
    caller: Caller,
    lab: LabDep,
    job_id: str,
    state: Annotated[list[CellState], Query(description="In one of these states.")] = [],  # noqa: B006
    sort: Annotated[
        str,
        Query(
            pattern=r"^-?[\w./-]{1,100}$",
            description=f"{', '.join(FIELDS)}, or a metric; `-` before it turns the order round.",
        ),
    ] = "index",
) -> Response:
    """The cells of a sweep or comparison; none for other kinds."""
    job = lab.jobs.get(caller, job_id)
    ledger = Ledger(lab.settings.folders.job(job.id))
    cells = [cell for cell in ledger.cells() if not state or cell.state in state]
    items = [_trial(cell) for cell in _sorted(cells, sort)]
    return Json({"items": items, "counts": dict(ledger.counts())})


@router.get(
    "/comparison",
    responses={
        200: {
            "description": "Arms, difference, interval, verdict and every block.",
            "content": {"application/json": {"schema": {"type": "object"}, "example": COMPARISON}},
        },
        **documented(Code.NOT_FOUND),
    },
)
def show_comparison(caller: Caller, lab: LabDep, job_id: str) -> Response:
    """A comparison's result, once it has one."""
    job = lab.jobs.get(caller, job_id)
    if job.kind != "compare":
        raise ApiProblem(Code.NOT_FOUND, f"{job.id} is a {job.kind} job, not a comparison")
    result = read_json(lab.settings.folders.job(job.id).comparison)
    if result is None:
        raise ApiProblem(Code.NOT_FOUND, f"{job.id} is {job.state} and has no result yet")
    return Json(result)


def _sorted(cells: list[Cell], sort: str) -> list[Cell]:
    """By a field or a metric; cells without the metric come last either way."""
    name, descending = sort.removeprefix("-"), sort.startswith("-")
    if name in FIELDS:
        return sorted(cells, key=FIELDS[name], reverse=descending)
    known = [cell for cell in cells if name in cell.metrics]
    rest = [cell for cell in cells if name not in cell.metrics]
    return sorted(known, key=lambda cell: cell.metrics[name], reverse=descending) + rest


def _trial(cell: Cell) -> dict[str, Any]:
    return {
        "id": cell.id,
        "index": cell.index,
        "arm": cell.arm,
        "point": cell.point,
        "seed": cell.seed,
        "state": cell.state,
        "metrics": cell.metrics,
        "run_id": cell.mlflow_run_id,
        "run_digest": cell.run_digest,
        "error": cell.error,
        "started_at": stamp(cell.started_at),
        "finished_at": stamp(cell.finished_at),
    }
