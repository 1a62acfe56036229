"""How many jobs there are, for who watches the lab: grouped queries, no job is read whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.tables import EventRow, JobRow


@dataclass(frozen=True)
class Census:
    """All projects' jobs at one moment, deleted ones left out."""

    counts: Mapping[tuple[State, str], int]
    """By state and kind."""
    oldest_wait_s: float
    """How long the job waits that was queued first; 0 where none waits."""
    running: Sequence[tuple[str, str]]
    """Id and kind of each RUNNING job."""

    @property
    def queued(self) -> int:
        """Jobs that wait."""
        return sum(n for (state, _), n in self.counts.items() if state is State.QUEUED)


def census(session: Session) -> Census:
    """Counted now."""
    grouped = session.execute(
        select(JobRow.state, JobRow.kind, func.count())
        .where(JobRow.hidden.is_(False))
        .group_by(JobRow.state, JobRow.kind)
    )
    running = session.execute(
        select(JobRow.id, JobRow.kind).where(JobRow.state == State.RUNNING).order_by(JobRow.id)
    )
    return Census(
        counts={(State(state), kind): number for state, kind, number in grouped},
        oldest_wait_s=_oldest_wait_s(session),
        running=[(job_id, kind) for job_id, kind in running],
    )


def _oldest_wait_s(session: Session) -> float:
    """A job that was paused waits since it was resumed, not since it was made."""
    since = (
        select(func.max(EventRow.at).label("at"))
        .join(JobRow, JobRow.id == EventRow.job_id)
        .where(JobRow.state == State.QUEUED, EventRow.to_state == State.QUEUED)
        .group_by(EventRow.job_id)
        .subquery()
    )
    first = session.scalar(select(func.min(since.c.at)))
    return 0.0 if first is None else max(0.0, (datetime.now(UTC) - first).total_seconds())
