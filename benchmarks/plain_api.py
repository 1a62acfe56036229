"""The bare FastAPI + SQLAlchemy routes that ours are measured against.

    python benchmarks/plain_api.py DATABASE.db

What a careful person writes in an afternoon: a table of jobs and one of events, the same pydantic
model for the spec, the same engine (SQLite, WAL, synchronous=FULL, a busy timeout), one transaction
a request, `def` routes on uvicorn, JSON by the framework. What it has not: tokens, projects, roles,
idempotency keys, labels, a queue, ETags, request ids, logs, metrics, limits, problem pages.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import JSON, ForeignKey, create_engine, event, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from stoplab_platform.specs import RunSpec


class Base(DeclarativeBase):
    """Root of the tables."""

    type_annotation_map = {dict[str, Any]: JSON}


class JobRow(Base):
    """One job."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    spec: Mapped[dict[str, Any]]
    priority: Mapped[int]
    state: Mapped[str]
    created_at: Mapped[datetime]


class EventRow(Base):
    """One line of its history."""

    __tablename__ = "events"
    seq: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    at: Mapped[datetime]
    state: Mapped[str]


class Body(BaseModel):
    """A job to be run."""

    spec: RunSpec
    priority: int = 0


def create_app(database: str) -> FastAPI:
    """Two routes."""
    engine = create_engine(f"sqlite:///{database}", connect_args={"timeout": 10})
    event.listen(engine, "connect", _durable)
    Base.metadata.create_all(engine)
    app = FastAPI()

    @app.post("/v1/jobs", status_code=202)
    def submit(body: Body) -> dict[str, Any]:
        with Session(engine) as session, session.begin():
            now = datetime.now(UTC)
            row = JobRow(
                id=f"j_{uuid4().hex}", name=body.spec.name, spec=body.spec.plain(),
                priority=body.priority, state="QUEUED", created_at=now,
            )  # fmt: skip
            session.add(row)
            session.flush()
            first = EventRow(job_id=row.id, at=now, state="QUEUED")
            session.add(first)
            session.flush()
            return told(row, [first])

    @app.get("/v1/jobs/{job_id}")
    def show(job_id: str) -> dict[str, Any]:
        with Session(engine) as session:
            row = session.get(JobRow, job_id)
            if row is None:
                raise HTTPException(404, f"no job {job_id}")
            events = select(EventRow).where(EventRow.job_id == job_id).order_by(EventRow.seq)
            return told(row, list(session.scalars(events)))

    return app


def told(row: JobRow, events: list[EventRow]) -> dict[str, Any]:
    """A job as JSON."""
    return {
        "id": row.id,
        "name": row.name,
        "spec": row.spec,
        "priority": row.priority,
        "state": row.state,
        "created_at": row.created_at,
        "history": [{"state": one.state, "at": one.at} for one in events],
    }


def _durable(connection: Any, _record: Any) -> None:
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def main() -> None:
    """Serve on a free port, which uvicorn tells."""
    uvicorn.run(create_app(sys.argv[1]), host="127.0.0.1", port=0, access_log=False)


if __name__ == "__main__":
    main()
