"""Jobs: submit, find, show, change, end."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel

from stoplab_api.answers import Code, FieldError
from stoplab_api.auth import Caller, Submitter
from stoplab_api.bodies import (
    MOST_LABELS,
    DryRunBody,
    ExtendBody,
    JobBody,
    JobListBody,
    LimitsChange,
    PatchBody,
    RetryBody,
    SubmitBody,
)
from stoplab_api.context import Lab, LabDep
from stoplab_api.deps import body_of, request_body
from stoplab_api.etags import etag, require_match, unchanged
from stoplab_api.examples import DRY_RUN, EXTEND, JOB, JOBS, PATCH, RETRY, SUBMITS
from stoplab_api.places import absolute_paths
from stoplab_api.problems import ApiProblem, documented, field_errors
from stoplab_api.rendering import Json
from stoplab_platform.admission import capacity, demand
from stoplab_platform.errors import Conflict, SpecError
from stoplab_platform.jobs.models import IdempotencyRecord, Job, JobQuery, Principal, Submitted
from stoplab_platform.jobs.states import TERMINAL, State
from stoplab_platform.specs import AnySpec, parse_spec
from stoplab_platform.specs.base import canonical_digest

router = APIRouter(prefix="/jobs", tags=["jobs"])

MOST_VALUES = 16
"""Of one filter of a list."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[\x21-\x7e]([\x20-\x7e]{0,253}[\x21-\x7e])?$",
        description="Names this request: sent again it gives the same job, and "
        "`Idempotency-Replayed: true`; with another body 422.",
    ),
]
IfMatch = Annotated[str | None, Header(description="The `ETag` of the job as it was read.")]
CHANGES = documented(Code.FORBIDDEN, Code.NOT_FOUND, Code.ILLEGAL_MOVE)
TAKEN = {
    "description": "Accepted; `Location` is the job's address.",
    "headers": {
        "Location": {"schema": {"type": "string"}},
        "Idempotency-Replayed": {"schema": {"type": "string", "enum": ["true"]}},
    },
    "content": {"application/json": {"example": JOB}},
}


@router.post(
    "",
    status_code=202,
    response_model=JobBody,
    responses={
        202: TAKEN,
        200: {
            "model": DryRunBody,
            "description": "With `dry_run`: what would have been accepted.",
            "content": {"application/json": {"example": DRY_RUN}},
        },
        **documented(Code.FORBIDDEN, Code.BODY_TOO_LARGE, Code.INVALID_SPEC),
    },
    openapi_extra=request_body(SubmitBody, SUBMITS),
)
def submit_job(
    request: Request,
    caller: Submitter,
    lab: LabDep,
    body: Annotated[SubmitBody, Depends(body_of(SubmitBody))],
    dry_run: Annotated[bool, Query(description="Only check; nothing is stored.")] = False,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Accept a job. Relative local paths in its spec count from the server's working folder."""
    if dry_run:
        return Json(_dry_run(lab, caller, spec_of(body.spec), body))
    record = _record(request, idempotency_key, body)
    return _accepted(
        lab,
        lab.jobs.replayed(caller, record)
        or lab.jobs.submit(
            caller, spec_of(body.spec), labels=body.labels, priority=body.priority, record=record
        ),
    )


@router.get(
    "",
    response_model=JobListBody,
    responses={200: {"content": {"application/json": {"example": JOBS}}}},
)
def list_jobs(
    caller: Caller,
    lab: LabDep,
    state: Annotated[
        list[State], Query(max_length=MOST_VALUES, description="In one of these states.")
    ] = [],  # noqa: B006
    kind: Annotated[
        list[Literal["pretrain", "sweep", "compare", "evaluate"]],
        Query(max_length=MOST_VALUES, description="Of one of these kinds."),
    ] = [],  # noqa: B006
    label: Annotated[
        list[Annotated[str, Query(pattern="^[^:]+:")]],
        Query(max_length=MOST_VALUES, description="With all of these labels, each as `key:value`."),
    ] = [],  # noqa: B006
    q: Annotated[str | None, Query(max_length=120, description="Start of name or id.")] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Most jobs on the page.")] = 50,
    cursor: Annotated[
        str | None, Query(pattern="^j_[0-9a-z]{26}$", description="`next_cursor` of a page.")
    ] = None,
) -> Any:
    """The project's jobs, newest first."""
    pairs = tuple((key, value) for key, _, value in (one.partition(":") for one in label))
    page = lab.jobs.list(
        caller,
        JobQuery(
            states=tuple(state), kinds=tuple(kind), labels=pairs,
            prefix=q, limit=limit, cursor=cursor,
        ),
    )  # fmt: skip
    return Json({"items": lab.jobs.views(page.items), "next_cursor": page.next_cursor})


@router.get(
    "/{job_id}",
    response_model=JobBody,
    responses={
        200: {
            "headers": {"ETag": {"schema": {"type": "string"}}},
            "content": {"application/json": {"example": JOB}},
        },
        304: {"description": "Unchanged since `If-None-Match`."},
        **documented(Code.NOT_FOUND),
    },
)
def show_job(
    caller: Caller,
    lab: LabDep,
    job_id: str,
    if_none_match: Annotated[str | None, Header(description="An `ETag` of this job.")] = None,
) -> Response:
    """One job."""
    answer = _shown(lab, lab.jobs.get(caller, job_id))
    if unchanged(if_none_match, answer.headers["ETag"]):
        return Response(status_code=304, headers={"ETag": answer.headers["ETag"]})
    return answer


@router.patch(
    "/{job_id}",
    response_model=JobBody,
    responses={
        200: {"content": {"application/json": {"example": JOB}}},
        **documented(
            Code.FORBIDDEN, Code.NOT_FOUND, Code.VERSION_MISMATCH, Code.INVALID_BODY,
            Code.PRECONDITION_REQUIRED, Code.ILLEGAL_MOVE, Code.INVALID_SPEC,
        ),
    },
    openapi_extra=request_body(PatchBody, PATCH),
)  # fmt: skip
def change_job(
    caller: Submitter,
    lab: LabDep,
    job_id: str,
    body: Annotated[PatchBody, Depends(body_of(PatchBody))],
    if_match: IfMatch = None,
) -> Response:
    """Change labels (null takes one away, others stay), priority, or limits."""
    job = lab.jobs.get(caller, job_id)
    require_match(if_match, job.version)
    labels = None if body.labels is None else {**job.labels, **body.labels}
    kept = None if labels is None else {k: v for k, v in labels.items() if v is not None}
    if kept is not None and len(kept) > MOST_LABELS:
        text = f"{len(kept)} labels in all; at most {MOST_LABELS}: null takes one away"
        found = [FieldError(pointer="/labels", message=text)]
        raise ApiProblem(Code.INVALID_BODY, f"/labels: {text}", errors=found)
    limits = _limits(body.limits)
    try:
        changed = lab.jobs.edit(
            caller, job_id, job.version, labels=kept, priority=body.priority, limits=limits
        )
    except Conflict as error:
        raise ApiProblem(Code.VERSION_MISMATCH, str(error)) from error
    return _shown(lab, changed)


@router.delete(
    "/{job_id}",
    status_code=204,
    responses={204: {"description": "Gone."}, **CHANGES},
)
def delete_job(caller: Submitter, lab: LabDep, job_id: str) -> None:
    """Remove a finished job with its folder and checkpoints; MLflow keeps its runs."""
    lab.jobs.delete(caller, job_id)


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    response_model=JobBody,
    responses={
        202: {"content": {"application/json": {"example": JOB}}},
        200: {"model": JobBody, "description": "It was finished already; nothing changed."},
        **documented(Code.FORBIDDEN, Code.NOT_FOUND),
    },
)
def cancel_job(caller: Submitter, lab: LabDep, job_id: str) -> Response:
    """End the job; it finishes its step, saves, and is killed after 5 s."""
    finished = lab.jobs.get(caller, job_id).state in TERMINAL
    return _shown(lab, lab.jobs.cancel(caller, job_id), 200 if finished else 202)


@router.post("/{job_id}/pause", status_code=202, response_model=JobBody, responses=CHANGES)
def pause_job(caller: Submitter, lab: LabDep, job_id: str) -> Response:
    """Stop the job at its next checkpoint, so that it can go on later."""
    return _shown(lab, lab.jobs.pause(caller, job_id), 202)


@router.post("/{job_id}/resume", status_code=202, response_model=JobBody, responses=CHANGES)
def resume_job(caller: Submitter, lab: LabDep, job_id: str) -> Response:
    """Put a paused job back into the queue."""
    return _shown(lab, lab.jobs.resume(caller, job_id), 202)


@router.post(
    "/{job_id}/retry",
    status_code=202,
    response_model=JobBody,
    responses={202: TAKEN, **CHANGES, **documented(Code.INVALID_SPEC)},
    openapi_extra=request_body(RetryBody, RETRY, required=False),
)
def retry_job(
    request: Request,
    caller: Submitter,
    lab: LabDep,
    job_id: str,
    body: Annotated[RetryBody, Depends(body_of(RetryBody, may_lack=True))],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """A new job with a finished one's spec. Runs that succeeded are adopted, not run again.

    An unfinished run goes on from its last checkpoint, unless it diverged.
    """
    record = _record(request, idempotency_key, body)
    return _accepted(
        lab,
        lab.jobs.replayed(caller, record)
        or lab.jobs.retry(caller, job_id, limits=_limits(body.limits), record=record),
    )


@router.post(
    "/{job_id}/extend",
    status_code=202,
    response_model=JobBody,
    responses={202: TAKEN, **CHANGES, **documented(Code.INVALID_SPEC)},
    openapi_extra=request_body(ExtendBody, EXTEND),
)
def extend_job(
    request: Request,
    caller: Submitter,
    lab: LabDep,
    job_id: str,
    body: Annotated[ExtendBody, Depends(body_of(ExtendBody))],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """A new job: a finished study with more seeds or points. Runs that succeeded are adopted."""
    asked = body.model_dump(exclude_unset=True)
    additions = {name: value for name, value in asked.items() if value is not None}
    record = _record(request, idempotency_key, body)
    try:
        taken = lab.jobs.replayed(caller, record) or lab.jobs.extend(
            caller, job_id, additions, record=record
        )
    except SpecError as error:
        found = field_errors(error.problems)
        text = f"{len(found)} problem(s) with what is to be added"
        raise ApiProblem(Code.INVALID_SPEC, text, errors=found) from error
    return _accepted(lab, taken)


def _limits(change: LimitsChange | None) -> dict[str, Any] | None:
    return None if change is None else change.model_dump(exclude_unset=True)


def spec_of(data: Any) -> AnySpec:
    """The spec of a body, relative paths below the working folder; SpecError if it is none."""
    if isinstance(data, dict):
        data = absolute_paths(data, Path.cwd())
    return parse_spec(data)


def _dry_run(lab: Lab, caller: Principal, spec: AnySpec, body: SubmitBody) -> dict[str, Any]:
    lab.jobs.check(caller, spec)
    needs = demand(spec, capacity(lab.settings), lab.settings.quota(caller.project))
    return {
        "dry_run": True,
        "kind": spec.kind,
        "name": spec.name,
        "labels": body.labels,
        "priority": body.priority,
        "spec": spec.plain(),
        "spec_digest": spec.digest(),
        "demand": {"cpus": needs.cpus, "gpus": needs.gpus},
        "links": {"estimate": "/v1/estimates"},
    }


def _record(request: Request, key: str | None, body: BaseModel) -> IdempotencyRecord | None:
    """What a key stands for: the call and its body as they were sent, not what they come to."""
    if key is None:
        return None
    sent = body.model_dump(exclude_unset=True)
    return IdempotencyRecord(key, canonical_digest([request.url.path, sent]))


def _accepted(lab: Lab, taken: Submitted) -> Json:
    answer = _shown(lab, taken.job, 202)
    answer.headers["Location"] = f"/v1/jobs/{taken.job.id}"
    if taken.replayed:
        answer.headers["Idempotency-Replayed"] = "true"
    return answer


def _shown(lab: Lab, job: Job, status: int = 200) -> Json:
    view = lab.jobs.view(job)
    return Json(view, status, headers={"ETag": etag(view), "Cache-Control": "no-cache"})
