"""One job and its history, read by the shortest way: these are what people ask most.

The statements are made once, and rows are taken as they come: making an object of the session's for
each costs more than the database.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from stoplab_platform.jobs.models import Event, Job
from stoplab_platform.jobs.rows import event_value, job_value
from stoplab_platform.jobs.tables import EventRow, JobRow, LabelRow

_JOB = select(JobRow.__table__).where(JobRow.id == bindparam("job_id"))
_LABELS = (
    select(LabelRow.key, LabelRow.value)
    .where(LabelRow.job_id == bindparam("job_id"))
    .order_by(LabelRow.key)
)
_MOVES = (
    select(EventRow.__table__)
    .where(EventRow.job_id == bindparam("job_id"), EventRow.to_state.is_not(None))
    .order_by(EventRow.seq)
)


def single(session: Session, job_id: str) -> Job | None:
    """One job, hidden or not."""
    row = session.execute(_JOB, {"job_id": job_id}).one_or_none()
    if row is None:
        return None
    labels = session.execute(_LABELS, {"job_id": job_id})
    return job_value(row, {label.key: label.value for label in labels})


def moves(session: Session, job_id: str) -> Sequence[Event]:
    """The events that changed its state, oldest first."""
    return [event_value(row) for row in session.execute(_MOVES, {"job_id": job_id})]
