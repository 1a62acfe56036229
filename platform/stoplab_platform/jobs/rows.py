"""Between the store's rows and the values it gives out."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row

from stoplab_platform.jobs.models import Event, IdempotencyRecord, Intent, Job, NewJob
from stoplab_platform.jobs.states import ReasonCode, State
from stoplab_platform.jobs.tables import EventRow, IdempotencyRow, JobRow, LabelRow


def new_row(new: NewJob) -> JobRow:
    """The row of a job that was just accepted."""
    return JobRow(
        id=new.id,
        kind=new.kind,
        name=new.name,
        name_key=new.name.lower(),
        project=new.project,
        owner=new.owner,
        priority=new.priority,
        spec=dict(new.spec),
        spec_digest=new.spec_digest,
        retry_of=new.retry_of,
        extends=new.extends,
        version=1,
        attempt=0,
        state=State.QUEUED,
        created_at=datetime.now(UTC),
        settled=False,
        hidden=False,
        labels=label_rows(new.project, new.labels),
    )


def label_rows(project: str, labels: Mapping[str, str]) -> list[LabelRow]:
    """The rows of a job's labels."""
    return [
        LabelRow(project=project, key=key, value=value) for key, value in sorted(labels.items())
    ]


def key_row(new: NewJob, record: IdempotencyRecord) -> IdempotencyRow:
    """The row of a client's key."""
    return IdempotencyRow(
        project=new.project,
        owner=new.owner,
        key=record.key,
        body_digest=record.body_digest,
        job_id=new.id,
        created_at=datetime.now(UTC),
    )


def event_row(
    job_id: str | None,
    actor: str,
    verb: str,
    *,
    project: str | None = None,
    from_state: State | None = None,
    to_state: State | None = None,
    reason_code: ReasonCode | None = None,
    message: str | None = None,
) -> EventRow:
    """A new line of a job's history, or of a project's."""
    return EventRow(
        job_id=job_id,
        project=project,
        at=datetime.now(UTC),
        actor=actor,
        verb=verb,
        from_state=from_state,
        to_state=to_state,
        reason_code=reason_code,
        message=message,
    )


def job_value(row: JobRow | Row[Any], labels: Mapping[str, str] | None = None) -> Job:
    """A row as a value; of a bare row the labels are given beside it."""
    return Job(
        id=row.id,
        kind=row.kind,
        name=row.name,
        project=row.project,
        owner=row.owner,
        labels={label.key: label.value for label in row.labels} if labels is None else labels,
        priority=row.priority,
        spec=row.spec,
        spec_digest=row.spec_digest,
        run_digest=row.run_digest,
        retry_of=row.retry_of,
        extends=row.extends,
        limits=row.limits or {},
        version=row.version,
        attempt=row.attempt,
        state=State(row.state),
        intent=None if row.intent is None else Intent(row.intent),
        reason_code=None if row.reason_code is None else ReasonCode(row.reason_code),
        message=row.message,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        settled=row.settled,
        hidden=row.hidden,
    )


def event_value(row: EventRow | Row[Any]) -> Event:
    """A row as a value."""
    return Event(
        seq=row.seq,
        job_id=row.job_id,
        at=row.at,
        actor=row.actor,
        verb=row.verb,
        from_state=None if row.from_state is None else State(row.from_state),
        to_state=None if row.to_state is None else State(row.to_state),
        reason_code=None if row.reason_code is None else ReasonCode(row.reason_code),
        message=row.message,
    )
