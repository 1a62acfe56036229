"""Which runs of a sweep end early: Ray Tune's schedulers decide, our runs obey.

A decision to stop is written into the run's folder, and the run ends itself at its next step as
it does for any stop: its tracker is closed and its process is used again. Tune's own way would
raise SystemExit out of `tune.report` and may end the process meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler
from ray.tune.schedulers.trial_scheduler import FIFOScheduler

from stoplab_platform.files import read_lines, write_json
from stoplab_platform.ledger import DONE, Cell
from stoplab_platform.paths import JobFolder, RunFolder
from stoplab_platform.specs import SweepSpec
from stoplab_sweeps.cells import PRUNED, StudySpec

NO_CONTROLLER: Any = None  # which Tune's schedulers do not ask when they only record
EPOCH = "epoch"  # what schedulers take for time: epochs that have ended


def scheduler_of(
    spec: StudySpec, folder: JobFolder, cells: Sequence[Cell]
) -> ObeyedScheduler | None:
    """The spec's scheduler, told what the finished runs of earlier starts reached; None: none.

    Population-based training needs none: its generations are planned (`population`).
    """
    if not isinstance(spec, SweepSpec) or spec.scheduler.kind in ("none", "pbt"):
        return None
    scheduler = ObeyedScheduler(_deciding(spec), spec.objective.metric, folder)
    scheduler.replay([cell.id for cell in cells if cell.state in DONE])
    return scheduler


class ObeyedScheduler(FIFOScheduler):
    """Writes its inner scheduler's decision to stop a run into the run's folder."""

    def __init__(self, inner: TrialScheduler, metric: str, folder: JobFolder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._inner, self._judged_by, self._folder = inner, metric, folder
        self._ending: set[str] = set()

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Nothing: the inner scheduler has them."""
        return True

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A trial comes in."""
        self._inner.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Ask; a run that is to end may take its time."""
        if self._judged_by in result and trial.trial_id not in self._ending:
            decision = self._inner.on_trial_result(tune_controller, trial, result)
            if decision == TrialScheduler.STOP:
                self._ending.add(trial.trial_id)
                run = self._folder.run(trial.config["cell"])
                write_json(run.prune, {"intent": PRUNED, "epoch": result[EPOCH]})
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """A trial has ended; one that reported nothing has nothing to tell."""
        if self._judged_by in result and trial.trial_id not in self._ending:
            self._inner.on_trial_complete(tune_controller, trial, result)

    def replay(self, cell_ids: Sequence[str]) -> None:
        """Tell the inner scheduler what finished runs scored; nothing is decided by that.

        A score is told as the last one of a trial: that is recorded without a verdict.
        """
        for cell in cell_ids:
            trial = Trial("replayed", trial_id=cell, stub=True)
            for epoch, value in scores(self._folder.run(cell), self._judged_by):
                self._inner.on_trial_add(NO_CONTROLLER, trial)
                result = {EPOCH: epoch, self._judged_by: value}
                self._inner.on_trial_complete(NO_CONTROLLER, trial, result)


class Teller:
    """Tells Tune a run's scheduled scores, each epoch once; returns when that was decided on."""

    def __init__(self, metric: str) -> None:
        self._metric, self._last = metric, 0

    def __call__(self, epoch: int, values: Mapping[str, float]) -> None:
        """Report one evaluation."""
        if epoch > self._last and self._metric in values:
            self._last = epoch
            tune.report({EPOCH: epoch, self._metric: values[self._metric]})

    def again(self, run: RunFolder) -> None:
        """Report what a run scored in an earlier start, before it goes on."""
        for epoch, value in scores(run, self._metric):
            self(epoch, {self._metric: value})


def scores(run: RunFolder, metric: str) -> list[tuple[int, float]]:
    """(ended epochs, value) in the order of epochs; of a repeated epoch the newest value."""
    found = {
        line["epoch"]: line["values"][metric]
        for line in read_lines(run.scores)
        if metric in line["values"]
    }
    return sorted(found.items())


def _deciding(spec: SweepSpec) -> TrialScheduler:
    objective, wanted = spec.objective, spec.scheduler
    judged: dict[str, Any] = {
        "time_attr": EPOCH,
        "metric": objective.metric,
        "mode": objective.mode,
    }
    if wanted.kind == "asha":
        return AsyncHyperBandScheduler(
            **judged,
            max_t=spec.base.optim.epochs,
            grace_period=wanted.grace_epochs,
            reduction_factor=wanted.reduction_factor,
            stop_last_trials=False,
        )
    assert wanted.kind == "median", "the spec checks itself"
    never: Any = math.inf  # it would pause runs where too few have come as far
    return MedianStoppingRule(
        **judged,
        grace_period=wanted.grace_epochs,
        min_samples_required=wanted.min_samples,
        min_time_slice=never,
    )
