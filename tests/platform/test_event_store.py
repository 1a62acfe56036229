"""Events over many jobs, on every engine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from stoplab_platform.jobs.event_store import ANNOUNCED, EventQuery
from stoplab_platform.jobs.models import IdempotencyRecord, Role
from stoplab_platform.jobs.states import TERMINAL, State
from stoplab_platform.jobs.store import JobStore
from support_store import new_job

STATES = tuple(sorted(TERMINAL))


def test_a_projects_events_and_no_others(store: JobStore) -> None:
    mine, other = new_job(project="a"), new_job(project="b")
    for job in (mine, other):
        store.submit(job)
    token, _ = store.create_token("t", owner="ana", project="a", role=Role.ADMIN, actor="root")
    found = store.project_events(EventQuery("a"))
    assert [(event.job_id, event.verb) for event in found] == [
        (mine.id, "submit"),
        (None, "token.create"),
    ]
    assert token.id in str(found[1].message)
    assert store.project_events(EventQuery("a", after=found[0].seq)) == found[1:]
    assert store.project_events(EventQuery("a", limit=1)) == found[:1]
    assert store.project_events(EventQuery("a", actor="root")) == found[1:]
    assert store.project_events(EventQuery("a", verb="submit")) == found[:1]
    assert store.project_events(EventQuery("none")) == []


def test_what_nobody_was_told_of(store: JobStore) -> None:
    start = datetime.now(UTC) - timedelta(minutes=1)
    jobs = [store.submit(new_job()).job for _ in range(3)]
    for job in jobs[:2]:
        store.move(job, State.CANCELLED, actor="test")
    waiting = store.unannounced(STATES, start)
    assert [job.id for _, job in waiting] == [job.id for job in jobs[:2]]
    event, job = waiting[0]
    assert (event.to_state, job.state) == (State.CANCELLED, State.CANCELLED)
    store.announced(event, ANNOUNCED, "webhook")
    assert store.unannounced(STATES, start) == waiting[1:]
    assert store.unannounced((State.FAILED,), start) == []
    assert store.unannounced(STATES, datetime.now(UTC) + timedelta(minutes=1)) == []


def test_keys_are_counted_and_forgotten_by_age(store: JobStore) -> None:
    store.submit(new_job(), idempotency=IdempotencyRecord("key", "digest"))
    now = datetime.now(UTC)
    past, future = now - timedelta(days=1), now + timedelta(days=1)
    assert (store.count_keys(past), store.count_keys(future)) == (0, 1)
    store.forget_keys(past)
    assert store.count_keys(future) == 1
    store.forget_keys(future)
    assert store.count_keys(future) == 0
