"""What is deleted, and what has to stay until it may be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stoplab_platform import settle
from stoplab_platform.errors import IllegalMove, NotFound
from stoplab_platform.files import write_json
from stoplab_platform.jobs.models import Job, JobQuery
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.service import Jobs
from stoplab_platform.settings import Settings
from stoplab_platform.settle import Settler
from stoplab_platform.tracking import SpoolTracker, client
from support_mlflow import IDENTITY, PARAMS, points
from support_store import (
    ANA,
    compare_spec,
    evaluation,
    finished,
    lab_settings,
    new_job,
    run_spec,
    running,
)


@pytest.fixture
def settings(home: Path) -> Settings:
    return lab_settings(home)


@pytest.fixture
def url(settings: Settings) -> str:
    return settings.database  # the lab's own, of one kind


@pytest.fixture
def job(jobs: Jobs) -> Job:
    return jobs.submit(ANA, run_spec()).job


def test_delete(jobs: Jobs, store: JobStore, settings: Settings, job: Job) -> None:
    with pytest.raises(IllegalMove):
        jobs.delete(ANA, job.id)
    finished(store, job)
    folder = settings.folders.job(job.id)
    write_json(folder.result, {})
    jobs.delete(ANA, job.id)
    assert not folder.root.exists()
    with pytest.raises(NotFound):
        jobs.get(ANA, job.id)


def test_delete_waits_for_who_takes_the_runs_over(jobs: Jobs, store: JobStore) -> None:
    first = jobs.submit(ANA, compare_spec(seeds=(0, 1))).job
    finished(store, first)
    more = jobs.extend(ANA, first.id, {"seeds": [2]}).job
    with pytest.raises(IllegalMove, match=more.id):
        jobs.delete(ANA, first.id)
    assert jobs.get(ANA, first.id).id == first.id
    running(store, more)
    jobs.delete(ANA, first.id)


def test_delete_waits_for_a_retry_that_was_paused_before_its_start(
    jobs: Jobs, store: JobStore, job: Job
) -> None:
    finished(store, job)
    again = store.move(jobs.retry(ANA, job.id).job, State.STARTING, actor="x", attempt=1)
    store.move(jobs.pause(ANA, again.id), State.PAUSED, actor="x")
    with pytest.raises(IllegalMove, match=again.id):
        jobs.delete(ANA, job.id)


def test_delete_waits_for_who_evaluates_it(jobs: Jobs, store: JobStore, job: Job) -> None:
    finished(store, job, State.SUCCEEDED)
    probe = jobs.submit(ANA, evaluation(job.id)).job
    for judge in (probe, running(store, probe)):
        with pytest.raises(IllegalMove, match=judge.id):
            jobs.delete(ANA, job.id)
    store.move(judge, State.SUCCEEDED, actor="x")
    jobs.delete(ANA, job.id)


@pytest.mark.parametrize("way", ["job", "path", "mlflow_run"])
def test_delete_waits_for_who_starts_from_its_weights(
    way: str, jobs: Jobs, store: JobStore, settings: Settings, job: Job
) -> None:
    finished(store, job, State.SUCCEEDED)
    run = settings.folders.job(job.id).run("run")
    write_json(run.spool_sent, {"run_id": "abc"})
    named = {"job": job.id, "path": str(run.root), "mlflow_run": "abc"}
    arms = {"a": {}, "b": {"model.init_from": {way: named[way]}}}
    study = jobs.submit(ANA, compare_spec(arms=arms)).job
    paused = jobs.pause(ANA, study.id)
    for reader in (study, paused):
        with pytest.raises(IllegalMove, match=f"{reader.id} .*reads its weights"):
            jobs.delete(ANA, job.id)
    jobs.cancel(ANA, study.id)
    jobs.delete(ANA, job.id)


def test_what_never_started_has_nothing_to_take_over(jobs: Jobs, job: Job) -> None:
    jobs.cancel(ANA, job.id)
    again = jobs.retry(ANA, job.id).job
    jobs.delete(ANA, job.id)
    assert jobs.get(ANA, again.id).retry_of == job.id


def test_what_was_deleted_has_no_heirs(jobs: Jobs, store: JobStore, job: Job) -> None:
    finished(store, job)
    new = replace(new_job(), retry_of=job.id)
    jobs.delete(ANA, job.id)
    with pytest.raises(NotFound):
        store.submit(new)


def test_a_retry_of_one_whose_source_was_deleted(jobs: Jobs, store: JobStore, job: Job) -> None:
    finished(store, job)
    again = jobs.retry(ANA, job.id).job
    jobs.cancel(ANA, again.id)
    assert jobs.retry(ANA, again.id).job.retry_of == job.id
    jobs.cancel(ANA, store.list(JobQuery(states=(State.QUEUED,))).items[0].id)
    jobs.delete(ANA, job.id)
    assert jobs.retry(ANA, again.id).job.retry_of == again.id


def test_a_retry_of_one_that_was_started_and_never_ran_goes_on_from_its_source(
    jobs: Jobs, store: JobStore, job: Job
) -> None:
    finished(store, job)
    again = store.move(jobs.retry(ANA, job.id).job, State.STARTING, actor="x", attempt=1)
    store.move(jobs.cancel(ANA, again.id), State.CANCELLED, actor="x")
    assert jobs.retry(ANA, again.id).job.retry_of == job.id


def test_a_deleted_jobs_points_are_sent_before_its_folder_goes(
    jobs: Jobs, store: JobStore, settings: Settings, job: Job, mlflow_uri: str
) -> None:
    finished(store, job)
    folder = settings.folders.job(job.id)
    tracker = SpoolTracker(folder.run("run"), None)
    tracker.start(replace(IDENTITY, job_id=job.id), PARAMS)
    tracker.metrics(1, {"train/loss": 1.0})
    tracker.close()
    jobs.delete(ANA, job.id)
    settler = Settler(store, settings.model_copy(update={"mlflow_tracking_uri": mlflow_uri}))
    settler.settle(store.unsettled())
    settler.close(60)
    mlflow = client(mlflow_uri)
    (run,) = mlflow.search_runs([e.experiment_id for e in mlflow.search_experiments()])
    assert points(mlflow, run.info.run_id, "train/loss") == [(1, 1.0)]
    assert not folder.root.exists()
    assert store.unsettled() == []


def test_a_delete_that_was_killed_is_ended_by_the_settler(
    store: JobStore, settings: Settings, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle.tracking, "finish_runs", lambda *_: 0)
    ended = finished(store, job)
    store.settle(ended)
    folder = settings.folders.job(job.id).root
    write_json(folder / "result.json", {})
    left = folder.with_name(f".gone-{job.id}-0123abcd")
    write_json(left / "result.json", {})
    store.hide(store.get(job.id), actor="ana")
    settler = Settler(store, settings)
    settler.settle(store.unsettled())
    settler.close(60)
    assert not folder.exists()
    assert not left.exists()
    assert store.unsettled() == []
