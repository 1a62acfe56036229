"""Entity tags (RFC 9110, section 8.8.3) of jobs: ``"VERSION-DIGEST"``.

The digest covers progress and queue too, so that 304 tells the truth to who polls. The version
alone decides whether a change is based on the job as it is; ``If-Match: "VERSION"`` does as well.
"""

from __future__ import annotations

import re
from typing import Any

from stoplab_api.answers import Code
from stoplab_api.problems import ApiProblem
from stoplab_platform.specs.base import canonical_digest

_OURS = re.compile(r'"(\d{1,18})(?:-[0-9a-f]{16})?"')


def etag(view: dict[str, Any]) -> str:
    """The tag of a job as it is shown."""
    return f'"{view["version"]}-{canonical_digest(view)[:16]}"'


def unchanged(if_none_match: str | None, tag: str) -> bool:
    """Whether the client already has what ``tag`` stands for."""
    if if_none_match is None:
        return False
    known = [one.strip().removeprefix("W/") for one in if_none_match.split(",")]
    return tag in known or "*" in known


def require_match(if_match: str | None, version: int) -> None:
    """428 without If-Match, 412 when it names no tag of this version."""
    if if_match is None:
        raise ApiProblem(
            Code.PRECONDITION_REQUIRED, "send the ETag of the job as you read it as If-Match"
        )
    if if_match.strip() == "*":
        return
    if str(version) not in _OURS.findall(if_match):
        raise ApiProblem(
            Code.VERSION_MISMATCH, f"the job is at version {version}, not at {if_match}"
        )
