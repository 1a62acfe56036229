"""Files of a job: the list, and downloads that can be taken up where they broke."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from fastapi.responses import FileResponse, Response

from stoplab_api.answers import Code
from stoplab_api.auth import Caller
from stoplab_api.context import LabDep
from stoplab_api.etags import unchanged
from stoplab_api.examples import ARTIFACTS
from stoplab_api.findings import ArtifactListBody
from stoplab_api.problems import ApiProblem, documented
from stoplab_api.rendering import Json
from stoplab_api.reports import PAGE_POLICY
from stoplab_platform.artifacts import artifacts, find_artifact
from stoplab_platform.jobs.views import stamp

# Files come from runs: none may act as a page of this server's.
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": PAGE_POLICY,
    "X-Content-Type-Options": "nosniff",
}
MEDIA = {".yaml": "application/yaml", ".md": "text/markdown", ".tex": "application/x-tex"}
"""What Python's table of types does not tell, or not on every machine."""
SENT = {
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    "headers": {
        name: {"schema": {"type": "string"}}
        for name in ("ETag", "Accept-Ranges", "Content-Disposition", "Last-Modified")
    },
}

RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)

router = APIRouter(prefix="/jobs/{job_id}/artifacts", tags=["jobs"])


@router.get(
    "",
    response_model=ArtifactListBody,
    responses={
        200: {"content": {"application/json": {"example": ARTIFACTS}}},
        **documented(Code.NOT_FOUND),
    },
)
def list_artifacts(caller: Caller, lab: LabDep, job_id: str) -> Any:
    """Specs, results, pictures and checkpoints of a job and its runs."""
    job = lab.jobs.get(caller, job_id)
    found = artifacts(lab.settings.folders.job(job.id))
    return Json(
        {
            "items": [
                {"path": one.path, "bytes": one.bytes, "modified": stamp(one.modified)}
                for one in found
            ]
        }
    )


@router.head("/{path:path}", include_in_schema=False)
@router.get(
    "/{path:path}",
    response_class=Response,
    responses={
        200: {"description": "The whole file.", **SENT},
        206: {"description": "The part that `Range` asks for.", **SENT},
        304: {"description": "Unchanged since `If-None-Match`."},
        **documented(Code.NOT_FOUND, Code.RANGE_NOT_SATISFIABLE),
    },
)
def download_artifact(
    request: Request,
    caller: Caller,
    lab: LabDep,
    job_id: str,
    path: str,
    range: Annotated[str | None, Header(description="Bytes that are wanted (RFC 9110).")] = None,
    if_range: Annotated[
        str | None, Header(description="An `ETag`: the part only if the file is still that one.")
    ] = None,
    if_none_match: Annotated[str | None, Header(description="An `ETag` of this file.")] = None,
) -> Response:
    """One file, as an attachment; `path` is as the list has it."""
    job = lab.jobs.get(caller, job_id)
    file = find_artifact(lab.settings.folders.job(job.id), path)
    if file is None:
        raise ApiProblem(Code.NOT_FOUND, f"{job.id} has no artifact {path!r}")
    answer = FileResponse(
        file,
        headers=HEADERS,
        media_type=MEDIA.get(file.suffix),
        filename=file.name,
        stat_result=file.stat(),
    )
    tag = answer.headers["ETag"]
    if unchanged(if_none_match, tag):
        return Response(status_code=304, headers={"ETag": tag, **HEADERS})
    current = if_range in (None, tag, answer.headers["Last-Modified"])
    if range is None or not current or not _is_part(range, int(answer.headers["Content-Length"])):
        request.scope["headers"] = [one for one in request.headers.raw if one[0] != b"range"]
    return answer


def _is_part(range: str, size: int) -> bool:
    """Whether a Range names one part of a file; 416 where the file has no such part.

    What is malformed, or several parts, is passed over as RFC 9110 (14.2) allows: the whole file
    is the answer.
    """
    found = RANGE.fullmatch(range.strip())
    if found is None:
        return False
    first, last = found.groups()
    if not (first or last) or (first and last and int(last) < int(first)):
        return False
    outside = int(first) >= size if first else int(last) == 0 or size == 0
    if outside:
        headers = {"Content-Range": f"bytes */{size}"}
        raise ApiProblem(
            Code.RANGE_NOT_SATISFIABLE, f"the file has {size} bytes, not {range}", headers=headers
        )
    return True
