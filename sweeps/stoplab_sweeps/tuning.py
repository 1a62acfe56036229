"""A study's cells under Ray Tune: which runs when is Tune's, what became of it is the ledger's.

Each start is a Tune experiment of its own over the unfinished cells; Tune's own state is never
gone back to. Trial processes are used again for the next cell, which saves seconds a cell; so
whatever runs in them sets its threads and seeds itself.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.search import Searcher

from stoplab_platform.ledger import Ledger
from stoplab_platform.resources import Resources
from stoplab_platform.specs import SweepSpec
from stoplab_platform.specs.run import ComputeSpec
from stoplab_platform.specs.sweep import LimitsSpec
from stoplab_sweeps.cells import Execute, Start, StudySpec, run_cell
from stoplab_sweeps.feed import Feed, Say
from stoplab_sweeps.limits import current_limits
from stoplab_sweeps.schedulers import Teller, scheduler_of
from stoplab_trainers.cluster import connected

log = logging.getLogger("stoplab")

NO_END = 1_000_000_000  # Tune's own bound on trials; the feed says when it is over
DRIVER_CPUS = 0.01  # of a trial that only waits for the workers of its own run

# What Tune should leave alone: our working folder, our signals, the console, loggers of its own.
QUIET = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def run_in_tune(feed: Feed, spec: StudySpec, start: Start, execute: Execute) -> None:
    """Run what the feed gives, as many at a time as the cluster holds, until it is over."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    compute, folder = spec.base.compute, start.folder
    scheduler = scheduler_of(spec, folder, Ledger(folder).cells())
    metric = spec.objective.metric if scheduler and isinstance(spec, SweepSpec) else None
    with connected():
        at_once = concurrency(compute, _cluster(), current_limits(spec.limits, folder))
        log.info("%d runs to do, %d fit at a time", feed.remaining(), at_once)
        tune.Tuner(
            tune.with_resources(_trial(spec, start, execute, metric), _resources(compute)),
            tune_config=tune.TuneConfig(
                search_alg=Fed(feed),
                scheduler=scheduler,
                num_samples=NO_END,
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


def concurrency(compute: ComputeSpec, cluster: Resources, limits: LimitsSpec) -> int:
    """Runs at a time: as many as the cluster holds now, or as it was said that it may come to.

    A cluster that grows with what is asked of it holds none at first.
    """
    one = Resources(compute.cpus_per_worker, compute.gpus_per_worker) * compute.workers
    return max(one.times_in(cluster), limits.max_concurrent or 1)


class Fed(Searcher):
    """Hands out what the feed gives."""

    def __init__(self, feed: Feed) -> None:
        super().__init__()
        self._feed, self._cells = feed, dict[str, str]()

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next cell; None: not now."""
        found = self._feed.next()
        if found is Say.OVER:
            return Searcher.FINISHED  # type: ignore[return-value]  # Tune's own sign is a word
        if isinstance(found, Say):
            return None
        self._cells[trial_id] = found.id
        return {"cell": found.id}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A place is free; what became of the cell, the ledger knows."""
        self._feed.ended(self._cells.pop(trial_id))

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
    spec: StudySpec, start: Start, execute: Execute, metric: str | None
) -> Callable[[dict[str, Any]], None]:
    """What a trial's process does; with a ``metric`` its scheduled scores are told to Tune."""

    def trial(config: dict[str, Any]) -> None:
        run = start.folder.run(config["cell"])
        tell = None if metric is None else Teller(metric)
        with _output_to(run.rank_log(0)):
            if tell is not None:
                tell.again(run)
            run_cell(spec, config["cell"], start, execute, tell)

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
