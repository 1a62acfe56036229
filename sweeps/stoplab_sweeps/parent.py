"""A study's own run in MLflow: the parent of its cells' runs, with the study's result."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from stoplab_platform.errors import TrackerRefused, TrackerUnavailable
from stoplab_platform.files import write_json
from stoplab_platform.paths import JobFolder
from stoplab_platform.tracking import RunIdentity, SpoolTracker, create_parent, finish_runs
from stoplab_platform.tracking.base import Status
from stoplab_sweeps.cells import StudySpec

log = logging.getLogger("stoplab")

PARENT = "parent"  # its `stoplab.cell`, and its folder among the runs
CLOSE_S = 10.0  # to send the rest; a supervisor goes on with what is left


class Parent:
    """Made (or found again) beside the study's start; what it is told is spooled.

    MLflow being away costs the study nothing: cells go without a parent, and the next call that
    finds MLflow takes them in.
    """

    def __init__(self, spec: StudySpec, folder: JobFolder, identity: RunIdentity, uri: str) -> None:
        self._folder, self._identity, self._uri = folder, identity, uri
        self._params = spec.plain()
        self._opening = threading.Thread(target=self._open, name="stoplab-parent", daemon=True)
        self._opening.start()

    def close(
        self, status: Status | None, metrics: Mapping[str, float], artifacts: Sequence[Path]
    ) -> None:
        """Leave the result; status None leaves the run RUNNING, for a later attempt."""
        self._opening.join()
        if status is not None:
            self._open()  # takes in the runs of cells that were made before it
        tracker = SpoolTracker(self._folder.run(PARENT), self._uri)
        tracker.start(self._identity, self._params)
        tracker.metrics(0, metrics)
        for path in artifacts:
            tracker.artifact(path)
        if status is not None:
            tracker.finish(status)
        tracker.close(CLOSE_S)
        if status is not None:
            self._end_the_rest(status)

    def _open(self) -> None:
        try:
            run = create_parent(self._uri, self._identity, self._params)
        except (TrackerUnavailable, TrackerRefused) as error:
            log.warning("the study has no run in MLflow yet: %s", error)
            return
        write_json(self._folder.tracked, run._asdict())

    def _end_the_rest(self, status: Status) -> None:
        """Runs of cells that did not come to their own end."""
        try:
            finish_runs(self._uri, self._identity.job_id, status)
        except (TrackerUnavailable, TrackerRefused) as error:
            log.warning("runs in MLflow are left as they are: %s", error)


def parent_identity(spec: StudySpec, job_id: str, attempt: int) -> RunIdentity:
    """What the study is called in the tracker."""
    tracking = spec.base.tracking
    return RunIdentity(
        job_id=job_id,
        kind=spec.kind,
        name=spec.name,
        experiment=tracking.experiment,
        cell=PARENT,
        attempt=attempt,
        spec_digest=spec.digest(),
        tags=tracking.tags,
    )
