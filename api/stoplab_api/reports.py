"""Files of a study's folder as answers: which format is wanted, how each is sent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import Request
from fastapi.responses import FileResponse, Response

from stoplab_api.answers import Code
from stoplab_api.problems import ApiProblem
from stoplab_platform.jobs.models import Job

MEDIA = {
    "json": "application/json",
    "html": "text/html; charset=utf-8",
    "md": "text/markdown; charset=utf-8",
    "tex": "application/x-tex; charset=utf-8",
    "png": "image/png",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}
"""Format to media type."""

# A page that a run has written is a stranger: it draws, in an origin of its own, and reaches
# nobody. Which scripts it may run, it says itself by their hashes.
PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'; "
    "sandbox allow-scripts allow-downloads"
)
HEADERS = {"Cache-Control": "no-cache", "Vary": "Accept", "X-Content-Type-Options": "nosniff"}


def wanted(request: Request, given: str | None, offered: Mapping[str, Any]) -> str:
    """The format that `format` names, else what `Accept` likes best, else the first offered.

    Accept is read as RFC 9110 section 12.5.1 has it; types that are not offered are passed over.
    """
    if given is not None:
        return given
    types = {MEDIA[name].partition(";")[0]: name for name in offered}
    liked = [_weighed(part) for part in request.headers.get("accept", "").split(",")]
    for media, weight in sorted(liked, key=lambda one: -one[1]):
        if media in types and weight > 0:
            return types[media]
        if media in ("*/*", "application/*"):
            break
    return next(iter(offered))


def sent(job: Job, path: Path, format: str, missing: str | None = None) -> Response:
    """The file as it is; 404 where it is not there."""
    if not path.is_file():
        detail = missing or f"{job.id} is {job.state} and has no {path.name} yet"
        raise ApiProblem(Code.NOT_FOUND, detail)
    headers = dict(HEADERS)
    if format == "html":
        headers["Content-Security-Policy"] = PAGE_POLICY
    return FileResponse(path, media_type=MEDIA[format], headers=headers)


def media(example: Any, *others: str) -> dict[str, Any]:
    """For a route's documentation: JSON with an example, and the other formats."""
    kinds = {MEDIA[name].partition(";")[0]: name for name in others}
    binary = {"type": "string", "format": "binary"}
    return {
        "application/json": {"schema": {"type": "object"}, "example": example},
        **{
            kind: {"schema": binary if name in ("png", "parquet") else {"type": "string"}}
            for kind, name in kinds.items()
        },
    }


def _weighed(part: str) -> tuple[str, float]:
    """A media range of Accept and its weight."""
    media_type, *parameters = (word.strip().lower() for word in part.split(";"))
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name == "q":
            try:
                return media_type, float(value)
            except ValueError:
                return media_type, 0.0
    return media_type, 1.0
