"""EvaluationSpec: a checkpoint, data, and the protocols to run on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from stoplab_platform.errors import Problem
from stoplab_platform.specs.base import Spec
from stoplab_platform.specs.data import EvalDataSpec
from stoplab_platform.specs.evals import KnnEval, LinearEval, Protocol
from stoplab_platform.specs.limits import JobLimits
from stoplab_platform.specs.run import ComputeSpec, Name, TrackingSpec


class CheckpointRef(Spec):
    """Which weights: exactly one of the three."""

    job: str | None = None
    """Id of a finished pretraining job."""
    mlflow_run: str | None = None
    """Id of a run in MLflow."""
    path: str | None = None
    """Path of a checkpoint folder, or of a run's folder."""

    def checks(self) -> Iterator[Problem]:
        """Exactly one."""
        given = [name for name in ("job", "mlflow_run", "path") if getattr(self, name)]
        if len(given) != 1:
            yield Problem((), f"give exactly one of job, mlflow_run, path; got {given}")


class EvalImagesSpec(EvalDataSpec):
    """Labelled shards and the size they are shown at."""

    image_size: int = Field(default=224, ge=4, le=4096)
    """Side of the image (pixels). Default 224."""


class EvaluationSpec(Spec):
    """Protocols on a frozen encoder."""

    kind: Literal["evaluate"]
    """Names this kind of spec."""
    spec_version: Literal[1] = 1
    """Version of this format. Default 1."""
    name: Name
    """A name for people."""
    checkpoint: CheckpointRef
    """Which weights."""
    data: EvalImagesSpec
    """Labelled images."""
    protocols: tuple[Protocol, ...] = (KnnEval(kind="knn"), LinearEval(kind="linear"))
    """What to run. Default kNN and linear probe."""
    compute: ComputeSpec = ComputeSpec()
    """Workers, threads, precision."""
    tracking: TrackingSpec = TrackingSpec()
    """Where the evaluation appears."""
    limits: JobLimits = JobLimits()
    """Where the job ends unfinished."""

    def checks(self) -> Iterator[Problem]:
        """Something to run."""
        if not self.protocols:
            yield Problem(("protocols",), "needs at least one protocol")
        names = [name for protocol in self.protocols for name in protocol.metrics()]
        if len(set(names)) != len(names):
            yield Problem(("protocols",), "each protocol may appear once")
