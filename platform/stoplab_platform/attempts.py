"""Starting and ending attempts: the job's folder, the fence and the runner's part of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from shutil import copytree

import yaml

from stoplab_platform.errors import RunnerUnavailable
from stoplab_platform.fence import own
from stoplab_platform.handoff import clear_stop, request_stop
from stoplab_platform.ids import submission_id
from stoplab_platform.jobs.models import Job
from stoplab_platform.ledger import Cell, CellState, Ledger
from stoplab_platform.paths import JobFolder, RunFolder, write_atomic, write_json
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
        sources = [source for source in (job.retry_of, job.extends) if source is not None]
        if sources:
            write_json(folder.origin, {"retry_of": job.retry_of, "extends": job.extends})
        if job.attempt == 1:
            for source in sources:  # what a retry has, and what it was to extend itself
                adopt_cells(self._settings.folders.job(source), folder)
        write_json(folder.limits, dict(job.limits))
        own(folder, job.attempt)
        self._runner.start(self._launch(job))

    def ask_stop(self, job: Job) -> None:
        """Write the stop file."""
        assert job.intent is not None, job
        request_stop(self._folder(job), job.attempt, job.intent)

    def kill(self, job: Job) -> None:
        """Take the folder from the attempt, and have the runner stop it."""
        own(self._folder(job), job.attempt + 1)
        # A cluster that is away stops nothing; the fence ends what lives.
        with suppress(RunnerUnavailable):
            self._runner.stop(submission_id(job.id, job.attempt))

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


def adopt_cells(source: JobFolder, target: JobFolder) -> None:
    """Give a study the finished cells of the one it goes on from, so that it does not run them.

    The legs of a population come with their checkpoints, from which the next ones go on.
    """
    finished = _finished(Ledger(source).cells())
    Ledger(target).plan([cell.model_copy(update={"adopted": True}) for cell in finished])
    for cell in finished:
        before, after = source.run(cell.id), target.run(cell.id)
        for file in _kept(before):
            write_atomic(after.root / file.name, file.read_text())
        if cell.generation is not None and before.checkpoints.exists():
            copytree(before.checkpoints, after.checkpoints, copy_function=_link, dirs_exist_ok=True)


def _finished(cells: Sequence[Cell]) -> list[Cell]:
    """Cells that no later start runs: of a population also the failed ones it went past."""
    newest = max((cell.generation or 0 for cell in cells), default=0)
    kept = (CellState.SUCCEEDED, CellState.PRUNED)
    return [c for c in cells if c.state in kept or (c.generation or 0) < newest]


def _link(source: str, target: str) -> None:
    """The same file under another name: checkpoints are large, and never written to again."""
    with suppress(FileExistsError):
        os.link(source, target)


def _kept(run: RunFolder) -> Iterator[Path]:
    """What a report needs of a finished run."""
    for file in (run.summary, run.predictions, run.scores, run.spool, run.spool_sent):
        if file.exists():
            yield file


def _gpus_in_place(job: Job) -> float:
    """GPUs of the attempt's own process: a single worker trains in it, more have theirs by Ray."""
    compute = job.spec.get("compute", {})
    return float(compute.get("gpus_per_worker", 0)) if compute.get("workers", 1) == 1 else 0
