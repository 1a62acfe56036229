"""A study's cells under Ray Tune: which runs when is Tune's, what became of it is the ledger's.

Each start is a Tune experiment of its own over the unfinished cells; Tune's own state is never
gone back to. Trial processes are used again for the next cell, which saves seconds a cell; so
whatever runs in them sets its threads and seeds itself.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher

from stoplab_platform.admission import Resources
from stoplab_platform.paths import JobFolder
from stoplab_platform.specs.run import ComputeSpec
from stoplab_sweeps.cells import Execute, Task, run_cell
from stoplab_trainers.cluster import connected

log = logging.getLogger("stoplab")

DRIVER_CPUS = 0.01  # of a trial that only waits for the workers of its own run

# What Tune should leave alone: our working folder, our signals, the console, loggers of its own.
QUIET = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def run_in_tune(
    tasks: Sequence[Task],
    folder: JobFolder,
    compute: ComputeSpec,
    *,
    max_concurrent: int | None,
    execute: Execute,
    go_on: Callable[[], bool],
) -> None:
    """Run the tasks, in order, as many at a time as fit; start no more once ``go_on`` is false."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    with connected():
        at_once = concurrency(compute, _cluster(), max_concurrent)
        log.info("%d runs to do, %d at a time", len(tasks), at_once)
        tune.Tuner(
            tune.with_resources(_trial(tasks, folder, execute), _resources(compute)),
            tune_config=tune.TuneConfig(
                search_alg=InOrder([task.cell_id for task in tasks], go_on),
                num_samples=len(tasks),
                max_concurrent_trials=at_once,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=f"start-{uuid4().hex[:8]}",
                storage_path=str(folder.tune),
                failure_config=tune.FailureConfig(max_failures=compute.max_failures),
                callbacks=[Silent()],
                verbose=0,
            ),
        ).fit()


def concurrency(compute: ComputeSpec, cluster: Resources, wanted: int | None) -> int:
    """Runs at a time: as many as the cluster holds, at most ``wanted``, at least one."""
    one = Resources(compute.cpus_per_worker, compute.gpus_per_worker) * compute.workers
    fitting = max(1, one.times_in(cluster))
    return fitting if wanted is None else min(fitting, wanted)


class InOrder(Searcher):
    """Hands out the cells one by one, until there are none left or the study should end."""

    def __init__(self, cell_ids: Sequence[str], go_on: Callable[[], bool]) -> None:
        super().__init__()
        self._waiting, self._go_on = list(cell_ids), go_on

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next cell."""
        if not self._waiting or not self._go_on():
            return Searcher.FINISHED  # type: ignore[return-value]  # Tune's own sign is a word
        return {"cell": self._waiting.pop(0)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: the ledger knows."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: the next start asks the ledger. Tune wants the file to exist."""
        Path(checkpoint_path).touch()


class Silent(TrialProgressCallback):
    """Tune's own reporter prints a line a trial, whatever it is told."""

    def _print(self, msg: str) -> None:
        """Nothing: `Watch` says what happens."""


def _cluster() -> Resources:
    have = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return Resources(have.get("CPU", 0.0), have.get("GPU", 0.0))


def _resources(compute: ComputeSpec) -> dict[str, float]:
    if compute.workers > 1:
        return {"cpu": DRIVER_CPUS}
    gpus = {"gpu": compute.gpus_per_worker} if compute.gpus_per_worker else {}
    return {"cpu": compute.cpus_per_worker, **gpus}


def _trial(
    tasks: Sequence[Task], folder: JobFolder, execute: Execute
) -> Callable[[dict[str, Any]], None]:
    by_id = {task.cell_id: task for task in tasks}

    def trial(config: dict[str, Any]) -> None:
        task = by_id[config["cell"]]
        with _output_to(folder.run(task.cell_id).rank_log(0)):
            run_cell(task, folder, execute)

    return trial


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send all that this process prints, native crashes too, to a run's own log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = os.dup(1), os.dup(2)
    try:
        with path.open("ab") as file:
            _point_at(file.fileno(), file.fileno())
        yield
    finally:
        _point_at(*kept)
        for descriptor in kept:
            os.close(descriptor)


def _point_at(out: int, err: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(out, 1)
    os.dup2(err, 2)
