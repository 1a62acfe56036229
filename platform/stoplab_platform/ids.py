"""Names for jobs and requests: time-sortable, unique without a server."""

from __future__ import annotations

from ulid import ULID


def new_job_id() -> str:
    """A job id such as ``j_01kb3w…``: a ULID in lower case, so ids sort by age."""
    return f"j_{str(ULID()).lower()}"


def submission_id(job_id: str, attempt: int) -> str:
    """The cluster's name for one attempt: the same whoever asks, so nothing starts twice."""
    return f"stoplab-{job_id}-a{attempt}"
