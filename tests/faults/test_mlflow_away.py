"""A real training whose MLflow is away, or is cut off from it: nothing is lost or doubled."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoplab_platform.jobs.models import Job
from stoplab_platform.jobs.states import State
from stoplab_platform.paths import RunFolder
from stoplab_platform.tracking import client
from stoplab_platform.tracking.sender import sent_run_id
from support_invariants import has_logged, is_told, is_whole
from support_jobs import Lab, running_lab
from support_ledger import kill_ledger
from support_mlflow import MlflowServer, mlflow_server, runs
from support_proxy import proxy
from support_runs import tiny
from support_store import ADMIN, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

AWAY_S = 120.0


@pytest.fixture
def server(tmp_path: Path, mlflow_tables: Path) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path / "server", mlflow_tables) as server:
        server.start()
        yield server


def training(lab: Lab, epochs: int) -> tuple[Job, RunFolder]:
    """A real run on digits, and its folder."""
    spec = tiny(evals=[], optim__epochs=epochs, checkpoint__every_epochs=5)
    job = lab.jobs.submit(ADMIN, spec).job
    return job, lab.folder(job).run("run")


def check(lab: Lab, job: Job, run: RunFolder, server: MlflowServer) -> None:
    """It succeeded in one attempt, and MLflow has one run with all of its record."""
    lab.wait(job, State.SUCCEEDED, 500)
    assert lab.job(job).attempt == 1
    mlflow = client(server.uri)
    wait_for(lambda: lab.job(job).settled, "the tracker to know", 120)
    (found,) = runs(mlflow, job.id)
    is_told(mlflow, found.info.run_id, "FINISHED")
    is_whole(mlflow, found.info.run_id, run)


def test_two_minutes_in_mid_run(home: Path, server: MlflowServer) -> None:
    with (
        kill_ledger("MLflow away", "kill -9 of MLflow") as ledger,
        running_lab(home, (), tracking_uri=server.uri) as lab,
    ):
        job, run = training(lab, epochs=500)
        wait_for(lambda: sent_run_id(run) and has_logged(run) > 50, "some points in MLflow", 120)
        server.kill()
        ledger.did("kill -9 of MLflow")
        lost, before = time.monotonic(), has_logged(run)
        wait_for(lambda: time.monotonic() - lost > AWAY_S, "two minutes", AWAY_S + 5)
        after = has_logged(run)
        assert after > before + 100, "the training waited for MLflow"
        ledger.note(f"away for {AWAY_S:g} s, steps {before} to {after}, then {lab.job(job).state}")
        server.start()
        check(lab, job, run, server)


def test_cut_connections(home: Path, server: MlflowServer) -> None:
    with (
        kill_ledger("trainer to MLflow", "cut connections") as ledger,
        proxy(server.port, (1_000, 200_000)) as between,
        running_lab(home, (), tracking_uri=f"http://127.0.0.1:{between.port}") as lab,
    ):
        between.cutting = True
        job, run = training(lab, epochs=100)
        check(lab, job, run, server)
        ledger.did("cut connections", between.cut)
        ledger.note(f"of {between.connections}")
