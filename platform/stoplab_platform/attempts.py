"""Starting and ending attempts: the job's folder, the fence and the runner's part of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import yaml

from stoplab_platform.admission import told_limits
from stoplab_platform.adoption import adopt
from stoplab_platform.errors import Fenced, RunnerUnavailable
from stoplab_platform.fence import own
from stoplab_platform.files import write_atomic, write_json
from stoplab_platform.handoff import clear_stop, request_stop
from stoplab_platform.ids import submission_id
from stoplab_platform.jobs.models import Job
from stoplab_platform.paths import JobFolder
from stoplab_platform.runner.base import Launch, Runner
from stoplab_platform.settings import Settings


class Attempts:
    """Does to the folder and the runner what was decided. Each verb may be repeated."""

    def __init__(self, runner: Runner, settings: Settings, command: Sequence[str] = ()) -> None:
        self._runner, self._settings = runner, settings
        self._command = ["--", *command] if command else []

    def start(self, job: Job) -> None:
        """Prepare the folder, then hand the attempt to the runner.

        The folder first: an attempt that finds no order to stop is the one that may run.
        """
        folder = self._folder(job)
        clear_stop(folder, job.attempt)
        text = yaml.safe_dump(dict(job.spec), sort_keys=False, allow_unicode=True)
        write_atomic(folder.spec, text)
        if (job.retry_of or job.extends) and not folder.origin.exists():
            adopt(job, self._settings.folders)
            write_json(folder.origin, {"retry_of": job.retry_of, "extends": job.extends})
        write_json(folder.limits, told_limits(job, self._settings))
        own(folder, job.attempt)
        self._runner.start(self._launch(job))

    def ask_stop(self, job: Job) -> None:
        """Write the stop file."""
        assert job.intent is not None, job
        request_stop(self._folder(job), job.attempt, job.intent)

    def kill(self, job: Job) -> None:
        """Take the folder from the attempt, and have the runner stop it."""
        with suppress(Fenced):  # a newer one has it already
            own(self._folder(job), job.attempt + 1)
        # A cluster that is away stops nothing; the fence ends what lives.
        with suppress(RunnerUnavailable):
            self._runner.stop(submission_id(job.id, job.attempt))

    def forget(self, job: Job) -> None:
        """Have the runner drop what it keeps of a job that has ended."""
        for attempt in range(1, job.attempt + 1):
            self._runner.forget(submission_id(job.id, attempt))

    def _folder(self, job: Job) -> JobFolder:
        return self._settings.folders.job(job.id)

    def _launch(self, job: Job) -> Launch:
        tied = ["--leave-with-parent"] if self._runner.tied_to_parent else []
        supervisor = [sys.executable, "-m", "stoplab_platform.supervisor"]
        attempt = ["--job", job.id, "--attempt", str(job.attempt)]
        return Launch(
            submission_id=submission_id(job.id, job.attempt),
            entrypoint=[*supervisor, *attempt, *tied, *self._command],
            env={
                **attempt_env(self._settings, job.id, job.attempt),
                "STOPLAB_PROJECT": job.project,
            },
            gpus=_gpus_in_place(job),
            metadata={"job": job.id, "kind": job.kind, "name": job.name, "owner": job.owner},
        )


def attempt_env(settings: Settings, job_id: str, attempt: int) -> dict[str, str]:
    """The environment of an attempt's processes."""
    roots = settings.data_roots
    limits = {} if roots is None else {"STOPLAB_DATA_ROOTS": os.pathsep.join(map(str, roots))}
    return {
        **limits,
        "STOPLAB_DATA_SCHEMES": ",".join(settings.data_schemes),
        "STOPLAB_HOME": str(settings.home),
        "STOPLAB_JOB_ID": job_id,
        "STOPLAB_ATTEMPT": str(attempt),
        "MLFLOW_TRACKING_URI": settings.tracking_uri,
        "PYTHONUNBUFFERED": "1",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    }


def _gpus_in_place(job: Job) -> float:
    """GPUs of the attempt's own process: a single worker trains in it, more have theirs by Ray."""
    compute = job.spec.get("compute", {})
    return float(compute.get("gpus_per_worker", 0)) if compute.get("workers", 1) == 1 else 0
