"""What the numbers of a run cost its training thread, as a share of the step.

python benchmarks/metrics.py [--json] [--quick]

Seconds of the thread that trains: of ten steps' counting, one of which is measured, sent through
the spool to MLflow and told to the log, over those of ten steps. The run is the demo's, whose steps
are so short that numbers weigh most; in the quick look nothing is sent on.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from harness import Result, arguments, compare, tell

from stoplab_platform.paths import RunFolder
from stoplab_platform.specs import RunSpec, load_spec
from stoplab_platform.tracking import RunIdentity, SpoolTracker
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.hooks import ProgressFile, Reporting
from stoplab_trainers.loop import Run, StepReport, _feed
from stoplab_trainers.measure import Pace, measure
from stoplab_trainers.step import Done, train_step

DEMO = Path(__file__).parents[1] / "trainers" / "configs" / "digits.yaml"
ROUNDS, QUICK_ROUNDS = 20, 2
"""Rounds of ten steps each."""


class Sides:
    """A run's steps, and what is told of the last one."""

    def __init__(self, run: Run, tracker: SpoolTracker, folder: RunFolder) -> None:
        self.run, self._feed = run, _feed(run)
        self._pace = Pace(run)
        self._hooks = [Reporting(tracker), ProgressFile(folder, None)]
        self._done: Done | None = None
        self.every = run.spec.tracking.log_every_steps

    def train(self) -> None:
        """As many steps as lie between two logged ones."""
        for _ in range(self.every):
            self.run.step += 1
            self._done = train_step(self.run, next(self._feed))

    def tell(self) -> None:
        """What is measured, counted and told between two logged steps."""
        done = self._done or train_step(self.run, next(self._feed))
        for number in range(self.every):
            self._pace.add(done.masks, 1.0)
            last = number == self.every - 1
            metrics = measure(self.run, done) | self._pace.taken() if last else {}
            report = StepReport(self.run.step, self.run.last_step, 0, False, 1.0, metrics)
            for hook in self._hooks:
                hook(self.run, report)


def results(quick: bool) -> list[Result]:
    """The one case."""
    torch.set_num_threads(1)
    spec = load_spec(DEMO)
    assert isinstance(spec, RunSpec)
    with tempfile.TemporaryDirectory(prefix="stoplab-bench-") as place:
        folder = RunFolder(Path(place) / "run")
        tracker = SpoolTracker(folder, None if quick else f"sqlite:///{place}/mlflow.db")
        identity = RunIdentity(job_id="j_bench", kind="pretrain", name="b", experiment="bench")
        tracker.start(identity, {})
        run = Run(spec, ShardSet.open(spec.data.train, Path(place) / "cache"))
        sides = Sides(run, tracker, folder)
        rounds = QUICK_ROUNDS if quick else ROUNDS
        result = compare(
            "metrics", sides.tell, sides.train, rounds, at_most=0.02, clock=time.thread_time
        )
        tracker.close()
    return [result]


if __name__ == "__main__":
    tell("metrics", results(arguments().quick))
