"""What is kept how long."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from stoplab_platform.files import write_atomic
from stoplab_platform.jobs.models import IdempotencyRecord, Job
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.retention import Due, Keeper, Retention
from stoplab_platform.settings import Settings
from support_store import evaluation, lab_settings, new_job, open_store, run_spec, wait_for

WAYS = {
    State.QUEUED: (),
    State.PAUSED: (State.PAUSED,),
    State.RUNNING: (State.STARTING, State.RUNNING),
    State.SUCCEEDED: (State.STARTING, State.RUNNING, State.SUCCEEDED),
    State.FAILED: (State.STARTING, State.RUNNING, State.FAILED),
}


@pytest.fixture
def home(home: Path) -> Path:
    (home / "cache").unlink()  # this test's own instead of the shared one
    return home


@pytest.fixture
def store(home: Path) -> Iterator[JobStore]:
    with open_store(lab_settings(home).database) as store:
        yield store


def job_in(store: JobStore, settings: Settings, state: State, **changes: Any) -> Job:
    """A job with all kinds of files."""
    job = store.submit(new_job(**changes)).job
    for to in WAYS[state]:
        job = store.move(job, to, actor="test")
    folder = settings.folders.job(job.id)
    run = folder.run("run")
    for file in (
        folder.spec, folder.result, folder.driver_log, folder.comparison, folder.cells / "a.json",
        run.spec, run.summary, run.predictions, run.rank_log(0), run.artifacts / "masks.png",
        run.checkpoints / "step-00000010" / "state.pt",
    ):  # fmt: skip
        write_atomic(file, "x" * 100)
    return job


def aged(store: JobStore, settings: Settings, job: Job, days: float) -> None:
    engine = create_engine(settings.database)
    at = (datetime.now(UTC) - timedelta(days=days)).isoformat(" ")[:26]
    with engine.begin() as connection:
        sql = "UPDATE jobs SET finished_at = :at WHERE id = :id AND finished_at IS NOT NULL"
        connection.execute(text(sql), {"at": at, "id": job.id})
    engine.dispose()


def files(settings: Settings, job: Job) -> set[str]:
    root = settings.folders.job(job.id).root
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_old_ones_lose_checkpoints_and_logs_and_nothing_else(home: Path, store: JobStore) -> None:
    settings = lab_settings(home, keep_checkpoints_days=10, keep_logs_days=30)
    ages = {5: set(), 20: {"checkpoints"}, 40: {"checkpoints", "logs"}}
    jobs = {days: job_in(store, settings, State.SUCCEEDED) for days in ages}
    before = {days: files(settings, job) for days, job in jobs.items()}
    for days, job in jobs.items():
        aged(store, settings, job, days)
    retention = Retention(store, settings)
    due = retention.due()
    assert {(item.job_id, item.kind) for item in due} == {
        (jobs[days].id, kind) for days, kinds in ages.items() for kind in kinds
    }
    assert [item.bytes for item in due if item.kind == "logs"] == [200]
    assert {days: files(settings, job) for days, job in jobs.items()} == before, "only looked"
    retention.apply(due)
    gone = {days: before[days] - files(settings, job) for days, job in jobs.items()}
    checkpoint = "runs/run/checkpoints/step-00000010/state.pt"
    logs = {"logs/driver.log", "runs/run/logs/rank-0.log"}
    assert gone == {5: set(), 20: {checkpoint}, 40: {checkpoint, *logs}}
    verbs = [event.verb for event in store.events(jobs[40].id)]
    assert verbs.count("prune") == 2
    assert Retention(store, settings).due() == []


def test_the_runner_forgets_whose_logs_go(home: Path, store: JobStore) -> None:
    settings = lab_settings(home, keep_checkpoints_days=0, keep_logs_days=30)
    jobs = {days: job_in(store, settings, State.SUCCEEDED) for days in (20, 40)}
    for days, job in jobs.items():
        aged(store, settings, job, days)
    forgotten: list[str] = []
    retention = Retention(store, settings, lambda job: forgotten.append(job.id))
    retention.apply(retention.due())
    assert forgotten == [jobs[40].id]


def test_a_removal_that_was_killed_is_ended_by_the_next(home: Path, store: JobStore) -> None:
    settings = lab_settings(home, keep_checkpoints_days=0)
    job = job_in(store, settings, State.SUCCEEDED)
    run = settings.folders.job(job.id).run("run")
    left = run.checkpoints.rename(run.root / ".gone-checkpoints-0123abcd")
    (due,) = Retention(store, settings).due()
    assert (due.paths, due.bytes) == ((left,), 100)
    Retention(store, settings).apply([due])
    assert not left.exists()


def test_what_may_still_be_needed_stays(home: Path, store: JobStore) -> None:
    settings = lab_settings(home, keep_checkpoints_days=0, keep_logs_days=0)
    finished = [job_in(store, settings, State.FAILED) for _ in range(8)]
    retried, extended, judged, labelled, named, placed, tracked, free = finished
    write_atomic(settings.folders.job(tracked.id).run("run").spool_sent, '{"run_id": "abc"}')
    step = settings.folders.job(placed.id).run("run").checkpoints / "step-00000010"
    starts = [{"job": named.id}, {"path": str(step)}, {"mlflow_run": "abc"}]
    starting = [run_spec(model={"init_from": start}) for start in starts]
    unfinished = [
        *(job_in(store, settings, State.QUEUED, of=spec) for spec in starting),
        job_in(store, settings, State.RUNNING),
        job_in(store, settings, State.PAUSED, retry_of=retried.id),
        job_in(store, settings, State.QUEUED, extends=extended.id),
        job_in(store, settings, State.QUEUED, of=evaluation(judged.id)),
    ]
    store.edit(labelled, actor="ana", labels={"keep": "for the paper"})
    for job in finished:
        aged(store, settings, job, 1000)
    due = Retention(store, settings).due()
    assert {item.job_id for item in due} == {free.id}
    Retention(store, settings).apply(due)
    for job in (*unfinished, *finished[:-2]):
        assert len(files(settings, job)) == 11, job.state
    assert len(files(settings, tracked)) == 12


def test_what_is_needed_since_the_look_stays(home: Path, store: JobStore) -> None:
    settings = lab_settings(home, keep_checkpoints_days=0)
    finished = [job_in(store, settings, State.FAILED) for _ in range(6)]
    for job in finished:
        aged(store, settings, job, 1000)
    retried, judged, begun, labelled, deleted, free = (store.get(job.id) for job in finished)
    before = files(settings, free)
    due = Retention(store, settings).due()
    assert len(due) == 6
    store.submit(new_job(retry_of=retried.id))
    store.submit(new_job(of=evaluation(judged.id)))
    store.submit(new_job(of=run_spec(model={"init_from": {"job": begun.id}})))
    store.edit(labelled, actor="ana", labels={"keep": ""})
    store.hide(deleted, actor="ana")
    Retention(store, settings).apply(due)
    for job in (retried, judged, begun, labelled, deleted):
        assert files(settings, job) == before
        assert "prune" not in [event.verb for event in store.events(job.id)]
    assert len(files(settings, free)) == len(before) - 1


def test_nothing_goes_unless_it_was_said(home: Path, store: JobStore) -> None:
    settings = lab_settings(home)
    aged(store, settings, job_in(store, settings, State.SUCCEEDED), 1000)
    write_atomic(settings.folders.cache / "remote" / "a" / "x.tar", "x" * 1000)
    assert Retention(store, settings).due() == []


def cached(settings: Settings, name: str, used_days_ago: float) -> Path:
    path = settings.folders.cache / name
    write_atomic(path, "x" * 100)
    at = time.time() - used_days_ago * 86400
    os.utime(path, (at, at - 1000))
    return path


def test_the_cache_keeps_what_was_used_last(home: Path, store: JobStore) -> None:
    settings = lab_settings(home, cache_bytes=350)
    kept = [cached(settings, f"unpacked/{n}.tar", n) for n in (1, 2)]
    whole = [cached(settings, f"embedded/digits/{n}.tar", 5) for n in (1, 2)]
    old = [cached(settings, f"remote/{n}/a.tar", n) for n in (9, 8)]
    due = Retention(store, settings).due()
    assert [item.paths[0].name for item in due] == ["9", "8", "digits"]
    Retention(store, settings).apply(due)
    assert [path.exists() for path in (*kept, *whole, *old)] == [True] * 2 + [False] * 4


def test_what_a_running_job_may_read_stays_in_the_cache(home: Path, store: JobStore) -> None:
    settings = lab_settings(home, cache_bytes=0)
    running = job_in(store, settings, State.RUNNING)
    cached(settings, "remote/before/a.tar", 5)
    lately = cached(settings, "remote/lately/a.tar", 0.01)
    engine = create_engine(settings.database)
    began = (datetime.now(UTC) - timedelta(days=3)).isoformat(" ")[:26]
    with engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET started_at = :at"), {"at": began})
    engine.dispose()
    during = cached(settings, "remote/during/a.tar", 2)
    assert [item.paths[0].name for item in Retention(store, settings).due()] == ["before"]
    store.move(store.get(running.id), State.FAILED, actor="test")
    names = [item.paths[0].name for item in Retention(store, settings).due()]
    assert names == ["before", during.parent.name]
    assert lately.exists()


def test_keys_are_forgotten(home: Path, store: JobStore) -> None:
    settings = lab_settings(home, keep_keys_days=0)
    first = store.submit(new_job(), idempotency=IdempotencyRecord("key", "digest")).job
    due = Retention(store, settings).due()
    assert due == [Due("keys", 0, 1)]
    Retention(store, settings).apply(due)
    second = store.submit(new_job(), idempotency=IdempotencyRecord("key", "digest"))
    assert not second.replayed
    assert second.job.id != first.id


def test_one_replica_does_it_once_a_day(home: Path, store: JobStore) -> None:
    settings = lab_settings(home, keep_checkpoints_days=0)
    keepers = [Keeper(store, settings, first_after_s=0) for _ in range(2)]
    job = job_in(store, settings, State.SUCCEEDED)

    def pruned() -> int:
        return [event.verb for event in store.events(job.id)].count("prune")

    for keeper in keepers:
        keeper.tidy()
    wait_for(pruned, "the first day")
    for keeper in keepers:
        keeper.close()
        keeper.tidy()
        keeper.close()
    assert pruned() == 1
