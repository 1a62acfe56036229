"""Who still needs what a job has."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Text, and_, cast, or_, select
from sqlalchemy.orm import Session

from stoplab_platform.jobs.states import TERMINAL, State
from stoplab_platform.jobs.tables import JobRow
from stoplab_platform.sources import reads

NAMED = "mlflow_run"  # stands in the spec of whoever names weights so


def heir(session: Session, job_id: str, runs: Collection[str] = ()) -> str | None:
    """An unfinished job that may still have to take this one's runs over, or reads its weights.

    ``runs``: ids of this one's runs in MLflow, by which others may name its weights.
    """
    unfinished = JobRow.state.in_(set(State) - TERMINAL)
    follows = or_(JobRow.retry_of == job_id, JobRow.extends == job_id)
    takes = and_(follows, JobRow.started_at.is_(None))
    if found := session.scalar(select(JobRow.id).where(takes, unfinished).limit(1)):
        return found
    # The text is looked through first: few specs name another job at all.
    text = cast(JobRow.spec, Text)
    names = [job_id, *([NAMED] if runs else [])]
    told = or_(*(text.contains(name, autoescape=True) for name in names))
    specs = select(JobRow.id, JobRow.spec).where(JobRow.hidden.is_(False), unfinished, told)
    for other, spec in session.execute(specs):
        if other != job_id and reads(spec, job_id, runs):
            return str(other)
    return None
