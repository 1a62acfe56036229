"""MLflow hears how jobs ended, whatever became of their runs."""

from __future__ import annotations

from pathlib import Path

from stoplab_platform.jobs.states import State
from stoplab_platform.tracking import client
from support_invariants import is_told
from support_jobs import running_lab, trainer
from support_store import ADMIN, wait_for


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
