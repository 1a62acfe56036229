"""What sweeps and comparisons find: their cells as a table, a comparison's result, a surface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from stoplab_api import reports
from stoplab_api.answers import Code, TrialListBody
from stoplab_api.auth import Caller
from stoplab_api.context import Lab, LabDep
from stoplab_api.examples import COMPARISON, SURFACE, TRIALS
from stoplab_api.problems import ApiProblem, documented
from stoplab_api.rendering import Json
from stoplab_platform.files import read_json
from stoplab_platform.jobs.models import Job
from stoplab_platform.jobs.views import stamp
from stoplab_platform.ledger import Cell, CellState, Ledger
from stoplab_platform.paths import JobFolder
from stoplab_platform.trials import FIELDS, Choice, as_csv, as_parquet, in_order

router = APIRouter(prefix="/jobs/{job_id}", tags=["studies"])

Bound = Annotated[
    str, Query(pattern=r"^[\w./-]{1,100}:[-+]?[0-9]{1,40}(\.[0-9]{0,40})?([eE][-+]?[0-9]{1,2})?$")
]
Pair = Annotated[str, Query(pattern=r"^[\w./-]{1,100}:.{1,200}$")]
TRIAL_FORMATS = dict.fromkeys(("json", "csv", "parquet"))
REPORT_FORMATS = dict.fromkeys(("json", "html", "md", "tex", "png"))
SURFACE_FORMATS = dict.fromkeys(("json", "html", "png"))
CHOSEN = "By default what `Accept` asks for, else JSON."


@router.get(
    "/trials",
    response_model=TrialListBody,
    responses={
        200: {
            "description": "The cells that were asked for, and how many there are in each state.",
            "content": {
                "application/json": {"example": TRIALS},
                "text/csv": {"schema": {"type": "string"}},
                "application/vnd.apache.parquet": {
                    "schema": {"type": "string", "format": "binary"}
                },
            },
        },
        **documented(Code.NOT_FOUND),
    },
)
def list_trials(
    request: Request,
    caller: Caller,
    lab: LabDep,
    job_id: str,
    state: Annotated[list[CellState], Query(description="In one of these states.")] = [],  # noqa: B006
    arm: Annotated[list[str], Query(description="Of one of these arms.")] = [],  # noqa: B006
    seed: Annotated[list[int], Query(description="With one of these seeds.")] = [],  # noqa: B006
    point: Annotated[
        list[Pair],
        Query(description="With this value of a swept field, as `positions.noise_std:0.25`; "
              "repeated for one field: any of them."),
    ] = [],  # noqa: B006
    min: Annotated[
        list[Bound], Query(description="With at least this much of a metric: `val/knn_top1:0.5`.")
    ] = [],  # noqa: B006
    max: Annotated[list[Bound], Query(description="With at most this much of a metric.")] = [],  # noqa: B006
    sort: Annotated[
        str,
        Query(
            pattern=r"^-?[\w./-]{1,100}$",
            description=f"{', '.join(FIELDS)}, a metric or a swept field; `-` before it turns "
            "the order round.",
        ),
    ] = "index",
    format: Annotated[
        Literal["json", "csv", "parquet"] | None, Query(description=CHOSEN)
    ] = None,
) -> Response:  # fmt: skip
    """The cells of a sweep or comparison; none for other kinds."""
    job = lab.jobs.get(caller, job_id)
    folder = lab.settings.folders.job(job.id)
    every = Ledger(folder).cells()
    choice = Choice(state, arm, seed, _values(point), _bounds(min), _bounds(max))
    chosen = [cell for cell in every if choice.takes(cell)]
    try:
        cells = in_order(chosen, sort)
    except ValueError as error:
        raise ApiProblem(Code.MALFORMED_REQUEST, f"sort: {error}") from error
    match reports.wanted(request, format, TRIAL_FORMATS):
        case "csv":
            return _table(as_csv(cells).encode(), "csv", job)
        case "parquet":
            return _table(as_parquet(cells), "parquet", job)
    counts = {word: sum(cell.state == word for cell in every) for word in CellState}
    return Json(
        {
            "items": [_trial(cell) for cell in cells],
            "counts": {word: number for word, number in counts.items() if number},
            "best": (read_json(folder.progress) or {}).get("best"),
        },
        headers={"Vary": "Accept"},
    )


@router.get(
    "/comparison",
    responses={
        200: {
            "description": "Arms, difference, interval, verdict and every block; or the report as "
            "a page, as Markdown, as a LaTeX table, as a picture.",
            "content": reports.media(COMPARISON, "html", "md", "tex", "png"),
        },
        **documented(Code.NOT_FOUND),
    },
)
def show_comparison(
    request: Request,
    caller: Caller,
    lab: LabDep,
    job_id: str,
    format: Annotated[
        Literal["json", "html", "md", "tex", "png"] | None, Query(description=CHOSEN)
    ] = None,
) -> Response:
    """A comparison's result, once it has one."""
    job, folder = _study(lab, caller, job_id, "compare", "comparison")
    name = reports.wanted(request, format, REPORT_FORMATS)
    result = read_json(folder.comparison)
    if result is None:
        raise ApiProblem(Code.NOT_FOUND, f"{job.id} is {job.state} and has no result yet")
    if name == "json":
        return Json(result, headers={"Vary": "Accept"})
    paths = {
        "html": folder.comparison_html,
        "md": folder.comparison_page,
        "tex": folder.comparison_tex,
        "png": folder.comparison_png,
    }
    return reports.sent(job, paths[name], name)


@router.get(
    "/surface",
    responses={
        200: {
            "description": "The metric over noise scale (columns) and effective masked fraction "
            "(rows), its uncertainty, the difference to deterministic positions, the best noise "
            "scale at each fraction, where to measure next; or the same as a page or a picture.",
            "content": reports.media(SURFACE, "html", "png"),
        },
        **documented(Code.NOT_FOUND),
    },
)
def show_surface(
    request: Request,
    caller: Caller,
    lab: LabDep,
    job_id: str,
    format: Annotated[Literal["json", "html", "png"] | None, Query(description=CHOSEN)] = None,
) -> Response:
    """A sweep's response surface; `reason` says why there is none."""
    job, folder = _study(lab, caller, job_id, "sweep", "sweep")
    name = reports.wanted(request, format, SURFACE_FORMATS)
    found = read_json(folder.surface)
    if found is None:
        raise ApiProblem(Code.NOT_FOUND, f"{job.id} is {job.state} and has no surface yet")
    if name == "json":
        return Json(found, headers={"Vary": "Accept"})
    path = folder.surface_html if name == "html" else folder.surface_png
    why = found["reason"] and f"{job.id} has no response surface: {found['reason']}"
    return reports.sent(job, path, name, missing=why)


def _study(lab: Lab, caller: Caller, job_id: str, kind: str, word: str) -> tuple[Job, JobFolder]:
    job = lab.jobs.get(caller, job_id)
    if job.kind != kind:
        raise ApiProblem(Code.NOT_FOUND, f"{job.id} is a {job.kind} job, not a {word}")
    return job, lab.settings.folders.job(job.id)


def _values(pairs: Sequence[str]) -> Mapping[str, Sequence[str]]:
    found: dict[str, list[str]] = {}
    for pair in pairs:
        name, _, value = pair.partition(":")
        found.setdefault(name, []).append(value)
    return found


def _bounds(pairs: Sequence[str]) -> Mapping[str, float]:
    return {name: float(word) for name, _, word in (pair.partition(":") for pair in pairs)}


def _table(content: bytes, format: str, job: Job) -> Response:
    name = f"{job.id}-trials.{format}"
    headers = {**reports.HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=reports.MEDIA[format], headers=headers)


def _trial(cell: Cell) -> dict[str, Any]:
    return {
        "id": cell.id,
        "index": cell.index,
        "arm": cell.arm,
        "point": cell.point,
        "seed": cell.seed,
        "member": cell.member,
        "generation": cell.generation,
        "parent": cell.parent,
        "state": cell.state,
        "metrics": cell.metrics,
        "run_id": cell.mlflow_run_id,
        "run_digest": cell.run_digest,
        "error": cell.error,
        "started_at": stamp(cell.started_at),
        "finished_at": stamp(cell.finished_at),
    }
