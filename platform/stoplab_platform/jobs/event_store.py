"""Queries about events that are not one job's history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import String, cast, exists, func, literal, select
from sqlalchemy.orm import aliased

from stoplab_platform.jobs.database import Database, retried
from stoplab_platform.jobs.models import Event, Job
from stoplab_platform.jobs.rows import event_row, event_value, job_value
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.tables import EventRow, JobRow

ANNOUNCED, LOST = "webhook.sent", "webhook.lost"
"""Verbs of the events that say what became of the news of another event."""


@dataclass(frozen=True)
class EventQuery:
    """Which events of a project to list, oldest first."""

    project: str
    after: int = 0
    """Number of the last event that is known."""
    limit: int = 50
    actor: str | None = None
    verb: str | None = None


class EventStore:
    """Events over many jobs, and those that belong to none."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def project_events(self, query: EventQuery) -> Sequence[Event]:
        """What happened in a project, deleted jobs too, after an event's number."""
        of = func.coalesce(EventRow.project, JobRow.project)
        found = select(EventRow).join(JobRow, EventRow.job_id == JobRow.id, isouter=True)
        found = found.where(of == query.project, EventRow.seq > query.after)
        if query.actor is not None:
            found = found.where(EventRow.actor == query.actor)
        if query.verb is not None:
            found = found.where(EventRow.verb == query.verb)
        with self._database.reading() as session:
            rows = session.scalars(found.order_by(EventRow.seq).limit(query.limit))
            return [event_value(row) for row in rows]

    def unannounced(self, states: Sequence[State], since: datetime) -> Sequence[tuple[Event, Job]]:
        """Moves to one of the states of which nobody was told yet, oldest first, and their jobs."""
        told = aliased(EventRow)
        is_told = exists().where(
            told.job_id == EventRow.job_id,
            told.verb.in_((ANNOUNCED, LOST)),
            told.message == literal("event ").concat(cast(EventRow.seq, String)),
        )
        found = (
            select(EventRow, JobRow)
            .join(JobRow, EventRow.job_id == JobRow.id)
            .where(EventRow.at >= since, EventRow.to_state.in_(states), ~is_told)
            .order_by(EventRow.seq)
        )
        with self._database.reading() as session:
            return [(event_value(event), job_value(job)) for event, job in session.execute(found)]

    @retried
    def announced(self, event: Event, verb: str, actor: str) -> None:
        """Note what became of an event's news."""
        with self._database.writing() as session:
            session.add(event_row(event.job_id, actor, verb, message=f"event {event.seq}"))
