"""Diagnostics of a run that goes on: the hook that watches features, and pictures at its end."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from stoplab_platform.paths import RunFolder, read_json, write_json
from stoplab_platform.tracking import Tracker, read_series
from stoplab_trainers.diagnostics.alarm import Alarm, Collapse, Collapsed
from stoplab_trainers.diagnostics.album import Subject, album
from stoplab_trainers.diagnostics.landing import landing_stats
from stoplab_trainers.diagnostics.masks import rows_together
from stoplab_trainers.diagnostics.noise import spectrum, spectrum_stats
from stoplab_trainers.diagnostics.pictures import Points, metric_names
from stoplab_trainers.diagnostics.probe import Probe, features_stats, first_images, token_std
from stoplab_trainers.loop import Run, StepReport

log = logging.getLogger("stoplab.train")

LEAST_STEPS, MOST_STEPS = 100, 2000
"""Steps between two looks: an epoch, within these."""
PICTURED = 4  # images in a run's picture of its masks
PREDICTED = 2  # and in that of its predictions


class Watching:
    """Looks at the target encoder's features on fixed images, and says when they collapse.

    It draws nothing and changes nothing: a run has the same weights with and without it. What it
    compares with is the untrained encoder of the run's seed, which every attempt can build again.
    """

    def __init__(self, run: Run, tracker: Tracker, folder: RunFolder) -> None:
        self._tracker, self._folder = tracker, folder
        self._every = min(max(run.plan.steps_per_epoch, LEAST_STEPS), MOST_STEPS)
        self._probe = Probe.of(run.shards, run.spec.data.image_size)
        untrained = run.objective.build(run.spec)
        self._start = self._probe.look(untrained.encoder.to(run.world.device))
        start = features_stats(self._start, self._start)
        tracker.metrics(0, start)
        self._alarm = Alarm({**start, "collapse/feature_std": token_std(self._start)})
        known = read_json(folder.alarm)
        self._told = known is not None and known["step"] <= run.step
        self.metrics: Mapping[str, float] = {}
        """What the last look found."""

    def __call__(self, run: Run, report: StepReport) -> None:
        """Look, if it is time; Collapsed where the spec says that a collapse ends the run."""
        heard = dict(report.metrics)
        if report.step % self._every == 0 or report.step == report.steps:
            self.metrics = self._look(run)
            self._tracker.metrics(report.step, self.metrics)
            heard |= self.metrics
        if not heard or run.spec.collapse == "off":
            return
        collapse = self._alarm.heard(report.step, heard)
        if collapse is not None:
            self._tell(collapse)
            if run.spec.collapse == "stop":
                raise Collapsed(collapse.message)

    def _look(self, run: Run) -> dict[str, float]:
        found = features_stats(self._probe.look(run.target), self._start)
        values = spectrum(run.model, run.spec)
        if values is not None and found:  # weights that are no numbers have no spectrum
            found |= spectrum_stats(values) | landing_stats(run.model, run.spec)
        return found

    def _tell(self, collapse: Collapse) -> None:
        """Once: in the log, on the run in the tracker, and beside the job's progress."""
        if self._told:
            return
        self._told = True
        log.warning("%s", collapse.message)
        self._tracker.tags({"stoplab.collapsed": f"step {collapse.step}, {collapse.measure}"})
        write_json(
            self._folder.alarm,
            {
                "step": collapse.step,
                "measure": collapse.measure,
                "value": collapse.value,
                "start": collapse.start,
                "message": collapse.message,
            },
        )


def leave_pictures(run: Run, folder: RunFolder, tracker: Tracker) -> None:
    """What a finished run's positions, predictions and history look like, as its artifacts."""
    if run.last_step < run.total_steps:
        return
    count = min(PREDICTED, rows_together(run.spec))
    images = first_images(run.shards, run.spec.data.image_size, count)
    subject = Subject(run.spec, run.model, run.target, images, spooled_series(folder))
    # A picture is not worth a trained run, nor the other pictures.
    made = album(subject, folder.artifacts, masks=False, strict=False)
    for picture in made.pictures:
        tracker.artifact(folder.artifacts / picture.file)


def spooled_series(folder: RunFolder) -> dict[str, Points]:
    """What the run has logged of the metrics that are drawn, by step."""
    told = read_series(folder, "", None, metric_names()).series
    return {name: [(p.step, p.value) for p in points] for name, points in told.items() if points}
