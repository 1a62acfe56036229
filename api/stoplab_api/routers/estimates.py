"""What a job will take, before it runs and beside what it took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from stoplab_api.answers import Code
from stoplab_api.auth import Caller
from stoplab_api.context import Lab, LabDep
from stoplab_api.deps import body_of, request_body
from stoplab_api.examples import ESTIMATE, ESTIMATE_ASKS, HINDSIGHT
from stoplab_api.findings import EstimateAsk, EstimateBody, HindsightBody
from stoplab_api.problems import documented
from stoplab_api.rendering import Json
from stoplab_api.routers.jobs import spec_of
from stoplab_platform.admission import capacity
from stoplab_platform.errors import NotFound, SpecError
from stoplab_platform.estimates import Estimate, estimate
from stoplab_platform.hindsight import beside
from stoplab_platform.jobs.models import Job, JobQuery, Principal
from stoplab_platform.ledger import Ledger
from stoplab_platform.rates import Measured, measured
from stoplab_platform.specs import AnySpec, EvaluationSpec, RunSpec, parse_spec

LOOKED_AT = 100  # jobs of the project, the newest first, whose finished runs count

router = APIRouter(tags=["estimates"])


@router.post(
    "/estimates",
    response_model=EstimateBody,
    responses={
        200: {"content": {"application/json": {"example": ESTIMATE}}},
        **documented(Code.BODY_TOO_LARGE, Code.INVALID_SPEC),
    },
    openapi_extra=request_body(EstimateAsk, ESTIMATE_ASKS),
)
def make_estimate(
    caller: Caller, lab: LabDep, body: Annotated[EstimateAsk, Depends(body_of(EstimateAsk))]
) -> Any:
    """What a spec would take: parameters, FLOPs, memory, hours, and what they rest on.

    The spec is checked as a submit checks it; nothing is stored.
    """
    spec = spec_of(body.spec)
    lab.jobs.check(caller, spec)
    page = lab.jobs.list(caller, JobQuery(limit=LOOKED_AT))
    return Json(_told(lab, caller, spec, _measured(lab, page.items), body.images).plain())


@router.get(
    "/jobs/{job_id}/estimate",
    response_model=HindsightBody,
    responses={
        200: {"content": {"application/json": {"example": HINDSIGHT}}},
        **documented(Code.NOT_FOUND),
    },
)
def show_estimate(caller: Caller, lab: LabDep, job_id: str) -> Any:
    """The estimate of a job, and, once it has succeeded, what it took and the error."""
    job = lab.jobs.get(caller, job_id)
    spec = parse_spec(job.spec)
    earlier = lab.jobs.list(caller, JobQuery(limit=LOOKED_AT, cursor=job.id)).items
    then = [one for one in earlier if one.finished_at and one.finished_at <= job.created_at]
    told = _told(lab, caller, spec, _measured(lab, then), None)
    cells = Ledger(lab.settings.folders.job(job.id)).cells()
    return Json(beside(job, spec, told, lab.store.history(job.id), cells))


def _told(
    lab: Lab, caller: Principal, spec: AnySpec, known: Sequence[Measured], images: int | None
) -> Estimate:
    trained = _trained(lab, caller, spec) if isinstance(spec, EvaluationSpec) else None
    return estimate(spec, capacity(lab.settings), known, images=images, trained=trained)


def _measured(lab: Lab, jobs: Sequence[Job]) -> list[Measured]:
    return measured(lab.settings.folders.job(job.id) for job in jobs)


def _trained(lab: Lab, caller: Principal, spec: EvaluationSpec) -> RunSpec | None:
    """The run behind an evaluation's checkpoint, where that is a job of the project."""
    if spec.checkpoint.job is None:
        return None
    try:
        found = parse_spec(lab.jobs.get(caller, spec.checkpoint.job).spec)
    except (NotFound, SpecError):
        return None
    return found if isinstance(found, RunSpec) else None
