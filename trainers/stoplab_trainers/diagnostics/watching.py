"""Diagnostics of a run that goes on: the hook that watches features, and pictures at its end."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor

from stoplab_platform.paths import RunFolder
from stoplab_platform.tracking import Tracker, read_series
from stoplab_trainers.diagnostics.alarm import LEAST, MOVED, Alarm, Collapsed
from stoplab_trainers.diagnostics.album import Subject, album
from stoplab_trainers.diagnostics.landing import landing_stats
from stoplab_trainers.diagnostics.masks import rows_together
from stoplab_trainers.diagnostics.noise import spectrum, spectrum_stats
from stoplab_trainers.diagnostics.pictures import Points, metric_names
from stoplab_trainers.diagnostics.probe import (
    Look,
    Probe,
    features_stats,
    first_images,
    moved,
    token_std,
)
from stoplab_trainers.diagnostics.telling import tell
from stoplab_trainers.loop import Run, StepReport

log = logging.getLogger("stoplab.train")

LEAST_STEPS, MOST_STEPS = 100, 2000
"""Steps between two looks: an epoch, within these."""
PICTURED = 4  # images in a run's picture of its masks
PREDICTED = 2  # and in that of its predictions


class Watching:
    """Looks at the target encoder's features on fixed images, and says when they collapse.

    It draws nothing and changes nothing: a run has the same weights with and without it. What it
    compares with is the untrained encoder of the run's seed, which every attempt can build again,
    and what the run has logged up to the step that it goes on from.
    """

    def __init__(self, run: Run, tracker: Tracker, folder: RunFolder) -> None:
        self._tracker, self._folder = tracker, folder
        self._every = min(max(run.plan.steps_per_epoch, LEAST_STEPS), MOST_STEPS)
        self._probe = Probe.of(run.shards, run.spec.data.image_size)
        untrained = run.objective.build(run.spec)
        self._start = self._probe.look(untrained.encoder.to(run.world.device))
        start = features_stats(self._start, self._start)
        tracker.metrics(0, start)
        self._last, self._looked_at = self._probe.look(run.target), run.step
        self._alarm = Alarm(
            {**start, "collapse/feature_std": token_std(self._start)}, _past(folder, run.step)
        )
        self.metrics: Mapping[str, float] = {}
        """What the last look found."""

    def __call__(self, run: Run, report: StepReport) -> None:
        """Look, if it is time; Collapsed where the spec says that a collapse ends the run."""
        heard = dict(report.metrics)
        if report.step % self._every == 0 or report.step == report.steps:
            look = self._probe.look(run.target)
            self.metrics = self._measured(run, look) | self._moved(report.step, look)
            self._tracker.metrics(report.step, self.metrics)
            heard |= self.metrics
        if not heard or run.spec.collapse == "off":
            return
        found = self._alarm.heard(report.step, heard)
        if found is not None:
            tell(found, self._folder, self._tracker)
            if found.kind == "collapsed" and run.spec.collapse == "stop":
                raise Collapsed(found.message)

    def _measured(self, run: Run, look: Look) -> dict[str, float]:
        found = features_stats(look, self._start)
        values = spectrum(run.model, run.spec)
        if values is not None and found:  # weights that are no numbers have no spectrum
            found |= spectrum_stats(values) | landing_stats(run.model, run.spec)
        return found

    def _moved(self, step: int, look: Look) -> dict[str, float]:
        """How far the target came since the last look, if that was a whole while ago."""
        before, since = self._last, step - self._looked_at
        self._last, self._looked_at = look, step
        whole = since >= self._every and look.is_finite and before.is_finite
        return {MOVED: moved(look, before)} if whole else {}


def leave_pictures(
    run: Run, weights: Mapping[str, Tensor], folder: RunFolder, tracker: Tracker
) -> None:
    """What a finished run's positions, predictions and history look like, as its artifacts.

    ``weights`` are the student's, whole: those of the run may lie in shards.
    """
    if run.last_step < run.total_steps:
        return
    count = min(PREDICTED, rows_together(run.spec))
    images = first_images(run.shards, run.spec.data.image_size, count)
    model = run.objective.build(run.spec).to(run.world.device)
    model.load_state_dict(weights)
    subject = Subject(run.spec, model, run.target, images, spooled_series(folder))
    # A picture is not worth a trained run, nor the other pictures.
    made = album(subject, folder.artifacts, masks=False, strict=False)
    for picture in made.pictures:
        tracker.artifact(folder.artifacts / picture.file)


def spooled_series(folder: RunFolder) -> dict[str, Points]:
    """What the run has logged of the metrics that are drawn, by step."""
    told = read_series(folder, "", None, metric_names()).series
    return {name: [(p.step, p.value) for p in points] for name, points in told.items() if points}


def _past(folder: RunFolder, until: int) -> dict[str, list[float]]:
    """What the alarm goes by, as it was logged up to a step."""
    told = read_series(folder, "", None, [*LEAST, MOVED]).series
    return {name: [p.value for p in points if p.step <= until] for name, points in told.items()}
