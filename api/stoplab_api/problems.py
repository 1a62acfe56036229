"""Errors as RFC 9457 ``application/problem+json``: which there are, how they are written."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from stoplab_api.answers import Code, FieldError, ProblemBody
from stoplab_platform.errors import Problem

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5
REFUSED = (401, 403, 429)
"""Of these the log tells who asked."""
_log = logging.getLogger("stoplab.api")


class Kind(BaseModel):
    """What all problems of one code share."""

    status: int
    title: str
    explanation: str


KINDS: dict[Code, Kind] = {
    code: Kind(status=status, title=title, explanation=explanation)
    for code, (status, title, explanation) in {
        Code.MALFORMED_REQUEST: (
            400,
            "The request cannot be read",
            "The body is no JSON, or a header, path or query parameter has a form that this "
            "call does not know; `errors` names each.",
        ),
        Code.UNAUTHENTICATED: (
            401,
            "A valid token is required",
            "Send `Authorization: Bearer TOKEN`. `stoplab up` writes the local one to a file; "
            "administrators make others.",
        ),
        Code.FORBIDDEN: (
            403,
            "The token may not do this",
            "Viewers read; submitters submit, and change their own jobs; administrators change "
            "every job of their project, and its tokens. A token with scopes may use no more of "
            "its role than they name.",
        ),
        Code.NOT_FOUND: (
            404,
            "No such thing",
            "There is nothing here, or it belongs to another project.",
        ),
        Code.METHOD_NOT_ALLOWED: (
            405,
            "The path has no such method",
            "The header `Allow` names those it has.",
        ),
        Code.ILLEGAL_MOVE: (
            409,
            "The job's state does not allow this",
            "`state` is where the job stands, `allowed_actions` is what it can be asked now.",
        ),
        Code.CONFLICT: (
            409,
            "Something else changed it at the same moment",
            "Read the job again, then repeat the call if it is still wanted.",
        ),
        Code.VERSION_MISMATCH: (
            412,
            "The job has changed since it was read",
            "`If-Match` names an older version. Read the job again for its present `ETag`.",
        ),
        Code.BODY_TOO_LARGE: (
            413,
            "The body is too large",
            "A spec is small; data travels as shards, never in a request.",
        ),
        Code.UNSUPPORTED_MEDIA_TYPE: (
            415,
            "The body must be JSON",
            "Send `Content-Type: application/json`.",
        ),
        Code.RANGE_NOT_SATISFIABLE: (
            416,
            "The file has no such part",
            "`Range` begins behind the file's end; `Content-Range` tells its length.",
        ),
        Code.INVALID_BODY: (
            422,
            "The body does not fit",
            "`errors` names each field at fault by a JSON pointer into the body.",
        ),
        Code.INVALID_SPEC: (
            422,
            "The spec is not valid",
            "`errors` names every mistake at once by a JSON pointer into the body.",
        ),
        Code.KEY_REUSED: (
            422,
            "The idempotency key belongs to another request",
            "A key names one request: repeat that one unchanged, or take a fresh key.",
        ),
        Code.PRECONDITION_REQUIRED: (
            428,
            "If-Match is required",
            "Read the job, and send its `ETag` as `If-Match`, so that no change is lost.",
        ),
        Code.RATE_LIMITED: (
            429,
            "Too many requests",
            "Ask again after `Retry-After` seconds. Each token has a rate of its own; an address "
            "that sends wrong tokens has to wait as well.",
        ),
        Code.INTERNAL: (
            500,
            "The server failed",
            "A mistake of ours. Its log has the details under `request_id`.",
        ),
        Code.DATABASE_UNAVAILABLE: (
            503,
            "The database does not answer",
            "Nothing was changed. Repeat after `Retry-After` seconds; submits with the same "
            "`Idempotency-Key`.",
        ),
        Code.CLUSTER_UNAVAILABLE: (
            503,
            "The cluster does not answer",
            "What was accepted stays accepted. Repeat after `Retry-After` seconds.",
        ),
        Code.TRACKER_UNAVAILABLE: (
            503,
            "MLflow does not answer",
            "And what was asked for lies nowhere else. Repeat after `Retry-After` seconds.",
        ),
        Code.NOT_READY: (
            503,
            "The server is not ready",
            "`checks` says which part is away.",
        ),
    }.items()
}


class ApiProblem(Exception):
    """Raised anywhere below a route to answer with a problem.

    ``more`` become further members of the body, ``headers`` headers of the answer.
    """

    def __init__(
        self,
        code: Code,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code, self.detail, self.errors = code, detail, list(errors)
        self.headers, self.more = dict(headers or {}), dict(more or {})


def documented(*codes: Code) -> dict[int | str, dict[str, Any]]:
    """For a route's ``responses``: the problems it has beside those that every route has."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        kind = KINDS[code]
        content = found.setdefault(
            kind.status,
            {
                "description": kind.title,
                "content": {
                    MEDIA_TYPE: {
                        "schema": {"$ref": "#/components/schemas/ProblemBody"},
                        "examples": {},
                    }
                },
            },
        )["content"]
        content[MEDIA_TYPE]["examples"][str(code)] = {"value": _example(code)}
    return found


def answer(request: Request, problem: ApiProblem) -> JSONResponse:
    """The problem as an answer to ``request``."""
    kind = KINDS[problem.code]
    body = ProblemBody(
        type=type_of(problem.code),
        title=kind.title,
        status=kind.status,
        detail=problem.detail,
        instance=request.url.path,
        code=problem.code,
        request_id=request.state.request_id,
        errors=problem.errors,
    )
    if kind.status in REFUSED:
        _log.warning(
            "refused code=%s owner=%s from=%s method=%s path=%s request_id=%s",
            problem.code,
            getattr(request.state, "owner", None),
            request.client.host if request.client else None,
            request.method,
            request.url.path.encode("unicode_escape").decode(),
            body.request_id,
        )
    # The middleware is not reached again when it is the whole server that failed.
    headers = {"X-Request-ID": body.request_id, **problem.headers}
    if kind.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers.setdefault("Retry-After", str(RETRY_AFTER_S))
    content = {**body.model_dump(mode="json"), **problem.more}
    return JSONResponse(content, kind.status, headers, MEDIA_TYPE)


def type_of(code: Code) -> str:
    """The page that explains a kind of problem."""
    return f"/v1/problems/{code}"


def field_errors(problems: Sequence[Problem], prefix: str = "") -> list[FieldError]:
    """The platform's problems with pointers into the request's body."""
    return [FieldError(pointer=p.pointer(prefix), message=p.message) for p in problems]


def _example(code: Code) -> dict[str, Any]:
    kind = KINDS[code]
    value: dict[str, Any] = {
        "type": type_of(code),
        "title": kind.title,
        "status": kind.status,
        "detail": kind.explanation,
        "instance": "/v1/jobs",
        "code": code.value,
        "request_id": "r_01kb3w8f0e3g9q6w5t2s1r4y7z",
        "errors": [],
    }
    if code is Code.ILLEGAL_MOVE:
        value |= {"state": "RUNNING", "allowed_actions": ["cancel", "pause"]}
    if code is Code.INVALID_SPEC:
        message = "-1.0: Input should be greater than or equal to 0"
        value["errors"] = [{"pointer": "/spec/positions/noise_std", "message": message}]
    return value
