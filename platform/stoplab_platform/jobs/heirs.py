"""Who still needs what a job has."""

from __future__ import annotations

from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session

from stoplab_platform.jobs.states import TERMINAL, State
from stoplab_platform.jobs.tables import JobRow


def heir(session: Session, job_id: str) -> str | None:
    """An unfinished job that may still have to take this one's runs over, or evaluates them."""
    follows = or_(JobRow.retry_of == job_id, JobRow.extends == job_id)
    takes = and_(follows, JobRow.started_at.is_(None))
    weights = JobRow.spec["checkpoint"]["job"].as_string()
    reads = and_(JobRow.hidden.is_(False), JobRow.kind == "evaluate", weights == job_id)
    unfinished = JobRow.state.in_(set(State) - TERMINAL)
    for needs in (takes, reads):  # each by an index of its own
        if found := session.scalar(select(JobRow.id).where(needs, unfinished).limit(1)):
            return found
    return None
