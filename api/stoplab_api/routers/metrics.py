"""A run's metrics: names with last values, or series that are thinned where they are long."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query

from stoplab_api.answers import Code
from stoplab_api.auth import Caller
from stoplab_api.context import Lab, LabDep
from stoplab_api.examples import METRICS, SERIES
from stoplab_api.findings import MetricListBody, SeriesListBody
from stoplab_api.problems import ApiProblem, documented
from stoplab_api.rendering import Json
from stoplab_platform.files import read_json
from stoplab_platform.jobs.models import Job
from stoplab_platform.jobs.states import STUDIES
from stoplab_platform.jobs.views import stamp
from stoplab_platform.ledger import Ledger
from stoplab_platform.paths import RunFolder
from stoplab_platform.tracking import Point, finite, read_last, read_series, sent_run_id, thinned

PARENT = "parent"

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"])


@router.get(
    "/metrics",
    response_model=SeriesListBody | MetricListBody,
    responses={
        200: {
            "description": "Without `name` every metric with its last value, with it the series.",
            "content": {
                "application/json": {
                    "examples": {"names": {"value": METRICS}, "series": {"value": SERIES}}
                }
            },
        },
        **documented(Code.NOT_FOUND, Code.TRACKER_UNAVAILABLE),
    },
)
def show_metrics(
    caller: Caller,
    lab: LabDep,
    job_id: str,
    name: Annotated[
        list[Annotated[str, Query(min_length=1, max_length=250)]],
        Query(max_length=50, description="A metric; repeated: several."),
    ] = [],  # noqa: B006
    run: Annotated[
        str | None,
        Query(
            pattern=r"^[\w.-]{1,200}$",
            description="A cell of a study; by default the study's own run.",
        ),
    ] = None,
    points: Annotated[int, Query(ge=4, le=5000, description="Most points of one series.")] = 500,
) -> Any:
    """Metrics of a run from MLflow, and from the run's spool what MLflow does not have yet."""
    job = lab.jobs.get(caller, job_id)
    word, folder, run_id = _run(lab, job, run)
    uri = lab.settings.tracking_uri
    head = {"run": word, "run_id": run_id}
    if not name:
        source, values = read_last(folder, uri, run_id)
        items = [{"name": one, "value": finite(value)} for one, value in sorted(values.items())]
        return Json({**head, "source": source, "items": items})
    found = read_series(folder, uri, run_id, list(dict.fromkeys(name)))
    series = []
    for one, every in found.series.items():
        kept = thinned(every, points)
        thin = {"n_total": len(every), "downsampled": len(kept) < len(every)}
        series.append({"name": one, **thin, "points": [_point(point) for point in kept]})
    return Json({**head, "source": found.source, "series": series})


def _run(lab: Lab, job: Job, run: str | None) -> tuple[str, RunFolder, str | None]:
    """Name, folder and id in MLflow of the run that is meant."""
    folder = lab.settings.folders.job(job.id)
    if job.kind not in STUDIES:
        if run not in (None, "run"):
            raise ApiProblem(Code.NOT_FOUND, f"{job.id} is one run, named 'run', not {run!r}")
        own = folder.run("run")
        return "run", own, sent_run_id(own)
    if run in (None, PARENT):
        return PARENT, folder.run(PARENT), (read_json(folder.tracked) or {}).get("run_id")
    cell = next((one for one in Ledger(folder).cells() if one.id == run), None)
    if cell is None:
        raise ApiProblem(Code.NOT_FOUND, f"{job.id} has no run {run!r}; see its trials")
    return cell.id, folder.run(cell.id), cell.mlflow_run_id or sent_run_id(folder.run(cell.id))


def _point(point: Point) -> dict[str, Any]:
    at = datetime.fromtimestamp(point.at / 1000, UTC)
    return {"step": point.step, "value": finite(point.value), "at": stamp(at)}
