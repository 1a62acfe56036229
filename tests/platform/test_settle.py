"""MLflow hears how jobs ended, whatever became of their runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from stoplab_platform import settle
from stoplab_platform.jobs.models import Job
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.paths import RunFolder
from stoplab_platform.settings import Settings
from stoplab_platform.settle import Settler
from stoplab_platform.tracking import SpoolTracker, client
from support_invariants import is_told
from support_jobs import running_lab, trainer
from support_mlflow import IDENTITY, PARAMS, free_port
from support_store import ADMIN, lab_settings, new_job, open_store, wait_for


def test_a_run_that_was_left_open_is_closed(home: Path, mlflow_uri: str) -> None:
    mlflow = client(mlflow_uri)
    experiment = mlflow.create_experiment("e")
    with running_lab(home, trainer(9999), tracking_uri=mlflow_uri) as lab:
        job = lab.submit()
        run = mlflow.create_run(experiment, tags={"stoplab.job_id": job.id})
        lab.wait(job, State.RUNNING)
        lab.jobs.cancel(ADMIN, job.id)
        lab.wait(job, State.CANCELLED)
        is_told(mlflow, run.info.run_id, "KILLED")
        wait_for(lambda: lab.job(job).settled, "the store to know that it is told", 60)


def ended(store: JobStore, settings: Settings, *ways: State) -> Job:
    """A job that failed, or so, with something in its spool that nobody has sent yet."""
    job = store.submit(new_job()).job
    for to in (State.STARTING, State.RUNNING, *(ways or (State.FAILED,))):
        job = store.move(job, to, actor="test", attempt=1)
    tracker = SpoolTracker(settings.folders.job(job.id).run("run"), None)
    tracker.start(replace(IDENTITY, job_id=job.id), PARAMS)
    tracker.close()
    return job


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The jobs whose spools the settler tried to send; it waits for none."""
    asked: list[str] = []
    drain = settle.tracking.drain

    def noted(run: RunFolder, uri: str, timeout_s: float) -> bool:
        asked.append(run.root.parent.parent.name)
        return drain(run, uri, timeout_s)

    monkeypatch.setattr(settle, "DRAIN_S", 0.0)
    monkeypatch.setattr(settle.tracking, "drain", noted)
    return asked


def rounds(settler: Settler, store: JobStore, count: int) -> None:
    for _ in range(count):
        settler.settle(store.unsettled())
        settler.close(60)


def test_a_job_that_cannot_be_settled_holds_up_no_other(
    home: Path, mlflow_uri: str, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = lab_settings(home, mlflow_uri)
    with open_store(settings.database) as store:
        held, broken, free = (ended(store, settings) for _ in range(3))
        settings.folders.job(broken.id).run("run").spool_sent.write_text("{")
        settler = Settler(store, settings)
        with FileLock(settings.folders.job(held.id).run("run").spool_lock):
            rounds(settler, store, 1)
        assert [store.get(job.id).settled for job in (held, broken, free)] == [False, False, True]
        assert len(asked) == 3
        rounds(settler, store, 1)
        assert len(asked) == 3, "they have to wait"
        monkeypatch.setattr(settle, "AGAIN_S", 0.0)
        rounds(Settler(store, settings), store, 1)
        assert [store.get(job.id).settled for job in (held, broken)] == [True, False]


def test_a_tracker_that_is_away_is_asked_once_a_round(home: Path, asked: list[str]) -> None:
    settings = lab_settings(home, f"http://127.0.0.1:{free_port()}")
    with open_store(settings.database) as store:
        for _ in range(2):
            ended(store, settings)
        rounds(Settler(store, settings), store, 2)
    assert len(asked) == 1


def test_a_job_that_is_resumed_meanwhile_is_left_alone(
    home: Path, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = lab_settings(home, mlflow_uri)
    mlflow = client(mlflow_uri)
    with open_store(settings.database) as store:
        job = ended(store, settings, State.STOPPING, State.PAUSED)
        run = mlflow.create_run(mlflow.create_experiment("e"), tags={"stoplab.job_id": job.id})
        drain = settle.tracking.drain

        def resumed(*words: Any) -> bool:
            store.move(job, State.QUEUED, actor="ana")
            return drain(*words)

        monkeypatch.setattr(settle.tracking, "drain", resumed)
        rounds(Settler(store, settings), store, 1)
        assert mlflow.get_run(run.info.run_id).info.status == "RUNNING"


def test_the_runner_forgets_a_deleted_job(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle.tracking, "finish_runs", lambda *_: 0)
    monkeypatch.setattr(settle.tracking, "answers", lambda _uri: True)
    monkeypatch.setattr(settle, "AGAIN_S", 0.1)  # its supervisor may live a little longer
    with running_lab(home, trainer(1)) as lab:
        kept, gone = lab.submit("kept"), lab.submit("gone")
        for job in (kept, gone):
            lab.wait(job, State.SUCCEEDED)
        lab.jobs.delete(ADMIN, gone.id)
        wait_for(lambda: not any(gone.id in p.name for p in (home / "runner").iterdir()), "it")
        assert any(kept.id in path.name for path in (home / "runner").iterdir())
        assert not lab.folder(gone).root.exists()
