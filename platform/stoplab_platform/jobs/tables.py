"""The store's tables. Changes go with a migration in `migrations/versions`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    TextClause,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from stoplab_platform.jobs.columns import Passage, Sorted, UtcDateTime, Words
from stoplab_platform.jobs.states import ACTIVE, TERMINAL, State

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


def _stands(*states: State) -> str:
    return "state IN ({})".format(", ".join(f"'{state}'" for state in State if state in states))


# With constants in them: no parameter would make a database use a partial index.
UNFINISHED = text(_stands(State.QUEUED, *ACTIVE))
"""Of jobs that want something from the reconciler."""
UNSETTLED = text(f"settled IS false AND {_stands(State.PAUSED, *TERMINAL)}")
"""Of finished or paused jobs whose end the tracker has not been told yet."""


def _partial(name: str, column: str, where: TextClause) -> Index:
    return Index(name, column, sqlite_where=where, postgresql_where=where)


class Base(DeclarativeBase):
    """Root of the tables."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        list[str]: JSON(none_as_null=True),
    }


class JobRow(Base):
    """One job."""

    __tablename__ = "jobs"
    __table_args__ = (
        # The lists, each newest first: all of a project, and by one column.
        Index("ix_jobs_list", "project", "hidden", "id", "name_key"),
        Index("ix_jobs_list_state", "project", "hidden", "state", "id"),
        Index("ix_jobs_list_kind", "project", "hidden", "kind", "id"),
        Index("ix_jobs_list_name", "project", "hidden", "name_key", "id"),
        Index("ix_jobs_counted", "hidden", "state", "kind"),  # how many there are of each
        # The reconciler's, and who goes on from a job: few at any time.
        _partial("ix_jobs_unfinished", "id", UNFINISHED),
        _partial("ix_jobs_unsettled", "id", UNSETTLED),
        _partial("ix_jobs_retry_of", "retry_of", text("retry_of IS NOT NULL")),
        _partial("ix_jobs_extends", "extends", text("extends IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(Sorted(40), primary_key=True)
    kind: Mapped[str] = mapped_column(Words(20))
    name: Mapped[str] = mapped_column(Words(120))
    name_key: Mapped[str] = mapped_column(Sorted(400), server_default="")
    """The name in lower case: databases differ in what that means."""
    project: Mapped[str] = mapped_column(Words(120))
    owner: Mapped[str] = mapped_column(Words(120))
    priority: Mapped[int] = mapped_column(Integer)
    spec: Mapped[dict[str, Any]]
    spec_digest: Mapped[str] = mapped_column(Words(64))
    run_digest: Mapped[str | None] = mapped_column(Words(64))
    retry_of: Mapped[str | None] = mapped_column(Sorted(40))
    extends: Mapped[str | None] = mapped_column(Sorted(40))
    limits: Mapped[dict[str, Any] | None]
    version: Mapped[int] = mapped_column(Integer)
    attempt: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(Words(20))
    intent: Mapped[str | None] = mapped_column(Words(20))
    reason_code: Mapped[str | None] = mapped_column(Words(40))
    message: Mapped[str | None] = mapped_column(Passage)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    settled: Mapped[bool]
    hidden: Mapped[bool]
    labels: Mapped[list[LabelRow]] = relationship(
        lazy="selectin", cascade="all, delete-orphan", order_by="LabelRow.key"
    )


class LabelRow(Base):
    """One label of one job."""

    __tablename__ = "job_labels"
    __table_args__ = (Index("ix_job_labels_list", "project", "key", "value", "job_id"),)

    job_id: Mapped[str] = mapped_column(Sorted(40), ForeignKey("jobs.id"), primary_key=True)
    project: Mapped[str] = mapped_column(Words(120), server_default="")
    """The job's, so that a list by label meets no other project's jobs."""
    key: Mapped[str] = mapped_column(Words(120), primary_key=True)
    value: Mapped[str] = mapped_column(Words(400))


class EventRow(Base):
    """One line of a job's or a project's history; appended, never changed."""

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_job_id_seq", "job_id", "seq"),
        Index("ix_events_at", "at"),
    )

    seq: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    job_id: Mapped[str | None] = mapped_column(Sorted(40), ForeignKey("jobs.id"))
    project: Mapped[str | None] = mapped_column(Words(120))
    """Of an event that belongs to no job."""
    at: Mapped[datetime]
    actor: Mapped[str] = mapped_column(Words(120))
    verb: Mapped[str] = mapped_column(Words(40))
    from_state: Mapped[str | None] = mapped_column(Words(20))
    to_state: Mapped[str | None] = mapped_column(Words(20))
    reason_code: Mapped[str | None] = mapped_column(Words(40))
    message: Mapped[str | None] = mapped_column(Passage)


class IdempotencyRow(Base):
    """Which job a client's key made."""

    __tablename__ = "idempotency"

    project: Mapped[str] = mapped_column(Words(120), primary_key=True)
    owner: Mapped[str] = mapped_column(Words(120), primary_key=True)
    key: Mapped[str] = mapped_column(Words(255), primary_key=True)
    body_digest: Mapped[str] = mapped_column(Words(64))
    job_id: Mapped[str] = mapped_column(Sorted(40), ForeignKey("jobs.id"))
    created_at: Mapped[datetime]


class TokenRow(Base):
    """One API token; of the secret only its sha256."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(Words(40), primary_key=True)
    name: Mapped[str] = mapped_column(Words(120))
    project: Mapped[str] = mapped_column(Words(120))
    owner: Mapped[str] = mapped_column(Words(120))
    role: Mapped[str] = mapped_column(Words(20))
    secret_sha256: Mapped[str] = mapped_column(Words(64), unique=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    scopes: Mapped[list[str] | None]
    last_used_at: Mapped[datetime | None]


class LeaseRow(Base):
    """Who may do what only one replica may; times are the database's own (seconds, epoch)."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(Words(40), primary_key=True)
    holder: Mapped[str] = mapped_column(Words(120))
    expires: Mapped[float] = mapped_column(Float)
