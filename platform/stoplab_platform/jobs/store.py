"""Every query about jobs. One method is one transaction; nothing else is done while it is open."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import TextClause, delete, func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from stoplab_platform.errors import Conflict, IllegalMove, KeyReused, NotFound
from stoplab_platform.jobs.census import Census, census
from stoplab_platform.jobs.database import Database, clock, retried
from stoplab_platform.jobs.heirs import heir
from stoplab_platform.jobs.listing import page, unfinished
from stoplab_platform.jobs.models import (
    Event,
    IdempotencyRecord,
    Job,
    JobQuery,
    NewJob,
    Page,
    Submitted,
)
from stoplab_platform.jobs.rows import (
    event_row,
    event_value,
    job_value,
    key_row,
    label_rows,
    new_row,
)
from stoplab_platform.jobs.single import moves, single
from stoplab_platform.jobs.states import MOVES, TERMINAL, ReasonCode, State, allowed_actions
from stoplab_platform.jobs.tables import (
    UNSETTLED,
    EventRow,
    IdempotencyRow,
    JobRow,
    LeaseRow,
)
from stoplab_platform.jobs.token_store import TokenStore

NONE: Mapping[str, Job] = {}
MOVABLE = frozenset({"attempt", "intent", "run_digest"})
"""Columns that a move may set beside the state."""


class JobStore(TokenStore):
    """Jobs and their history in one database; safe to share between threads."""

    def __init__(self, url: str) -> None:
        super().__init__(Database(url))

    def migrate(self) -> None:
        """Make or renew the tables."""
        self._database.migrate()

    def close(self) -> None:
        """Give the connections back."""
        self._database.close()

    @retried
    def ping(self) -> None:
        """One write; StoreUnavailable when it fails."""
        with self._database.writing() as session:
            session.execute(
                update(LeaseRow).where(LeaseRow.name == "ping").values(expires=clock(session))
            )

    def schema(self) -> tuple[str | None, str | None]:
        """Revision of the tables (None: there are none), and the one this code knows."""
        return self._database.schema()

    def clock(self) -> float:
        """The database's own clock, seconds since 1970."""
        with self._database.reading() as session:
            return clock(session)

    @retried
    def lease(self, name: str, holder: str, ttl_s: float) -> bool:
        """Take or keep a lease by the database's clock; False while somebody else holds it."""
        with self._database.writing() as session:
            now = clock(session)
            free = or_(LeaseRow.holder == holder, LeaseRow.expires < now)
            taken = session.connection().execute(
                update(LeaseRow)
                .where(LeaseRow.name == name, free)
                .values(holder=holder, expires=now + ttl_s)
            )
            return taken.rowcount == 1

    @retried
    def submit(self, new: NewJob, *, idempotency: IdempotencyRecord | None = None) -> Submitted:
        """Store a job, its first event and the client's key; the same key gives the same job."""
        try:
            return self._submit(new, idempotency)
        except IntegrityError:
            # Another replica stored the same key between our look and our write.
            return self._submit(new, idempotency)

    def _submit(self, new: NewJob, idempotency: IdempotencyRecord | None) -> Submitted:
        with self._database.writing() as session:
            if idempotency is not None:
                earlier = _claim(session, new.project, new.owner, idempotency)
                if earlier is not None:
                    return Submitted(job_value(earlier), replayed=True)
            for source in new.sources:
                _row(session, source, new.project, lock=True)  # it must not be deleted meanwhile
            row = new_row(new)
            session.add(row)
            session.flush()
            if idempotency is not None:
                session.add(key_row(new, idempotency))
            session.add(event_row(new.id, new.owner, "submit", to_state=State.QUEUED))
            return Submitted(job_value(row), replayed=False)

    def made_by(self, project: str, owner: str, record: IdempotencyRecord) -> Job | None:
        """The job that an owner's key made before, also one that was deleted since."""
        with self._database.reading() as session:
            row = _claim(session, project, owner, record)
            return None if row is None else job_value(row)

    def get(self, job_id: str, project: str | None = None) -> Job:
        """One job; NotFound when there is none, it is hidden, or it is another project's."""
        with self._database.reading() as session:
            job = single(session, job_id)
        if job is None or job.hidden or (project is not None and job.project != project):
            raise NotFound(f"no job {job_id}")
        return job

    def list(self, query: JobQuery) -> Page:
        """Jobs, newest first, after the cursor."""
        with self._database.reading() as session:
            rows = page(session, query, query.limit + 1)
            items = tuple(job_value(row) for row in rows[: query.limit])
            more = len(rows) > query.limit
            return Page(items, next_cursor=items[-1].id if more else None)

    def unfinished(self, known: Mapping[str, Job] = NONE) -> Sequence[Job]:
        """Jobs that want something from the reconciler (queued or active), oldest first.

        ``known`` are taken as they are where their version still stands; only others are read.
        """
        with self._database.reading() as session:
            return unfinished(session, known)

    def unsettled(self) -> Sequence[Job]:
        """Finished or paused jobs whose end the tracker has not been told yet, oldest first."""
        return self._select(UNSETTLED)

    @retried
    def move(
        self,
        job: Job,
        to: State,
        *,
        actor: str,
        verb: str = "move",
        reason_code: ReasonCode | None = None,
        message: str | None = None,
        **columns: Any,
    ) -> Job:
        """Take a job to another state, with one event; Conflict when ``job`` is out of date."""
        assert columns.keys() <= MOVABLE, columns
        if to not in MOVES[job.state]:
            raise IllegalMove(
                f"{job.id} is {job.state}; it cannot become {to}",
                state=job.state,
                allowed=allowed_actions(job.state),
            )
        values = {"state": to, "reason_code": reason_code, "message": message, **columns}
        with self._database.writing() as session:
            _guarded_update(session, job, {**values, **_stamps(job, to)})
            session.add(
                event_row(
                    job.id, actor, verb, from_state=job.state, to_state=to,
                    reason_code=reason_code, message=message,
                )
            )  # fmt: skip
            return job_value(_row(session, job.id))

    @retried
    def edit(
        self,
        job: Job,
        *,
        actor: str,
        labels: Mapping[str, str] | None = None,
        priority: int | None = None,
        limits: Mapping[str, Any] | None = None,
    ) -> Job:
        """Change labels, limits (all of them) or priority; Conflict if ``job`` is out of date."""
        with self._database.writing() as session:
            wished = {"priority": priority, "limits": limits}
            changes = {name: value for name, value in wished.items() if value is not None}
            _guarded_update(session, job, changes)
            row = _row(session, job.id)
            if labels is not None:
                row.labels = label_rows(row.project, labels)
            told = None if limits is None else f"limits changed: {dict(limits)}"
            session.add(event_row(job.id, actor, "edit", message=told))
            session.flush()
            session.refresh(row)
            return job_value(row)

    @retried
    def tell(self, job: Job, message: str, *, actor: str, verb: str) -> Job:
        """What people are to know of a job that stays where it is, with an event."""
        with self._database.writing() as session:
            _guarded_update(session, job, {"message": message})
            session.add(event_row(job.id, actor, verb, message=message))
            return job_value(_row(session, job.id))

    def is_current(self, job: Job) -> bool:
        """Whether nobody has changed it since."""
        with self._database.reading() as session:
            return session.scalar(select(JobRow.version).where(JobRow.id == job.id)) == job.version

    @retried
    def settle(self, job: Job) -> None:
        """Note that the tracker knows how the job ended; nothing when it moved on meanwhile."""
        with self._database.writing() as session:
            session.execute(
                update(JobRow)
                .where(JobRow.id == job.id, JobRow.version == job.version)
                .values(settled=True)
            )

    @retried
    def hide(self, job: Job, *, actor: str, runs: Collection[str] = ()) -> None:
        """Take a finished job out of every list.

        IllegalMove while it is not finished, or another job has still to take its runs over, or
        reads its weights (``runs``: as in `heir`). `settled` begins anew: its folder has to go.
        """
        if job.state not in TERMINAL:
            raise IllegalMove(
                f"{job.id} is {job.state}; only finished jobs can be deleted",
                state=job.state,
                allowed=allowed_actions(job.state),
            )
        with self._database.writing() as session:
            _guarded_update(session, job, {"hidden": True, "settled": job.attempt == 0})
            # Of a job that never started there is nothing to take over.
            if job.attempt and (other := heir(session, job.id, runs)):
                raise IllegalMove(
                    f"{job.id} cannot be deleted yet: {other} has still to take its runs over, "
                    "or reads its weights",
                    state=job.state,
                    allowed=allowed_actions(job.state, job.kind),
                )
            session.add(event_row(job.id, actor, "delete"))

    def heir(self, job_id: str, runs: Collection[str] = ()) -> str | None:
        """An unfinished job that may still need what this one has.

        ``runs``: its runs in MLflow, by which others may name its weights.
        """
        with self._database.reading() as session:
            return heir(session, job_id, runs)

    @retried
    def prune(
        self, job_id: str, *, actor: str, message: str, keep: str, runs: Collection[str] = ()
    ) -> bool:
        """An event that files of a job go; False, and none, where another job needs them.

        Nor of one that was deleted, or has the label ``keep``. Who comes after it finds them gone.
        """
        with self._database.writing() as session:
            row = session.get(JobRow, job_id, with_for_update=True)
            if row is None or row.hidden or keep in {label.key for label in row.labels}:
                return False
            if heir(session, job_id, runs):
                return False
            session.add(event_row(job_id, actor, "prune", message=message))
            return True

    @retried
    def record(
        self,
        job_id: str,
        *,
        actor: str,
        verb: str,
        message: str | None = None,
        reason_code: ReasonCode | None = None,
    ) -> None:
        """An event that moves nothing."""
        with self._database.writing() as session:
            session.add(event_row(job_id, actor, verb, message=message, reason_code=reason_code))

    def count_keys(self, before: datetime) -> int:
        """Clients' keys that were first used before a time."""
        old = select(func.count()).where(IdempotencyRow.created_at < before)
        with self._database.reading() as session:
            return session.scalars(old).one()

    def forget_keys(self, before: datetime) -> None:
        """Forget them: the same key makes another job from then on."""
        with self._database.writing() as session:
            session.execute(delete(IdempotencyRow).where(IdempotencyRow.created_at < before))

    def events(self, job_id: str, after: int = 0) -> Sequence[Event]:
        """A job's history after an event's number, oldest first."""
        return self._events(EventRow.job_id == job_id, EventRow.seq > after)

    def history(self, job_id: str) -> Sequence[Event]:
        """The events that changed a job's state, oldest first."""
        with self._database.reading() as session:
            return moves(session, job_id)

    def histories(self, job_ids: Iterable[str]) -> Mapping[str, Sequence[Event]]:
        """The state changes of several jobs at once."""
        found: dict[str, list[Event]] = {job_id: [] for job_id in job_ids}
        for event in self._events(EventRow.job_id.in_(found), EventRow.to_state.is_not(None)):
            if event.job_id is not None:
                found[event.job_id].append(event)
        return found

    def recoveries(self, job_id: str) -> Mapping[ReasonCode, int]:
        """How often a job went RECOVERING, by reason."""
        with self._database.reading() as session:
            rows = session.execute(
                select(EventRow.reason_code, func.count())
                .where(EventRow.job_id == job_id, EventRow.to_state == State.RECOVERING)
                .group_by(EventRow.reason_code)
            )
            return {ReasonCode(code): count for code, count in rows if code is not None}

    def census(self) -> Census:
        """How many jobs there are, of all projects."""
        with self._database.reading() as session:
            return census(session)

    def _select(self, condition: TextClause) -> Sequence[Job]:
        with self._database.reading() as session:
            rows = session.scalars(select(JobRow).where(condition).order_by(JobRow.id))
            return [job_value(row) for row in rows]

    def _events(self, *conditions: Any) -> Sequence[Event]:
        with self._database.reading() as session:
            rows = session.scalars(select(EventRow).where(*conditions).order_by(EventRow.seq))
            return [event_value(row) for row in rows]


def _claim(session: Session, project: str, owner: str, record: IdempotencyRecord) -> JobRow | None:
    """The job that this key made before; KeyReused when it came with another request."""
    key = session.get(IdempotencyRow, (project, owner, record.key))
    if key is None:
        return None
    if key.body_digest != record.body_digest:
        raise KeyReused(
            f"the idempotency key {record.key!r} was used for {key.job_id} with another request"
        )
    return session.get_one(JobRow, key.job_id)


def _row(
    session: Session, job_id: str, project: str | None = None, *, lock: bool = False
) -> JobRow:
    row = session.get(JobRow, job_id, with_for_update=lock)
    if row is None or row.hidden or (project is not None and row.project != project):
        raise NotFound(f"no job {job_id}")
    return row


def _guarded_update(session: Session, job: Job, values: Mapping[str, Any]) -> None:
    done = session.connection().execute(
        update(JobRow)
        .where(JobRow.id == job.id, JobRow.version == job.version)
        .values(version=job.version + 1, **values)
    )
    if done.rowcount == 0:
        raise Conflict(f"{job.id} is no longer at version {job.version}")


def _stamps(job: Job, to: State) -> dict[str, Any]:
    """What a move sets by itself."""
    stamps: dict[str, Any] = {}
    if to is State.RUNNING and job.started_at is None:
        stamps["started_at"] = datetime.now(UTC)
    if to in TERMINAL:
        stamps["finished_at"] = datetime.now(UTC)
    if to in TERMINAL or to is State.PAUSED:
        # An attempt may have left runs open in the tracker.
        stamps["settled"] = job.attempt == 0
    return stamps
