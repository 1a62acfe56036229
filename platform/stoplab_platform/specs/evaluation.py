"""EvaluationSpec: a checkpoint, data, and the protocols to run on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from stoplab_platform.errors import Problem, SpecError
from stoplab_platform.specs.base import Spec
from stoplab_platform.specs.data import EvalDataSpec
from stoplab_platform.specs.evals import KnnEval, LinearEval, Protocol, deeper_than, repeated
from stoplab_platform.specs.limits import JobLimits
from stoplab_platform.specs.run import MOST_PATCHES, ComputeSpec, Name, RunSpec, TrackingSpec
from stoplab_platform.specs.weights import CheckpointRef


class EvalImagesSpec(EvalDataSpec):
    """Labelled shards and the size they are shown at."""

    image_size: int | None = Field(default=None, ge=4, le=4096)
    """Side of the image (pixels); null: that of the run's training crops. Default null."""


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
        for path, message in repeated(self.protocols):
            yield Problem(("protocols", *path), message)
        if self.compute.workers > 1:
            text = f"{self.compute.workers}: an evaluation is one process; give 1"
            yield Problem(("compute", "workers"), text)
        if self.compute.min_workers is not None:
            text = f"{self.compute.min_workers}: an evaluation is one process; give null"
            yield Problem(("compute", "min_workers"), text)

    def judged(self, trained: RunSpec) -> RunSpec:
        """The run behind the checkpoint with this evaluation's images and protocols.

        How it was trained is not asked again: masks that do not fit another size matter no more.
        SpecError names what its encoder cannot do.
        """
        size, sizes = self.data.image_size or trained.data.image_size, trained.model.sizes()
        problems = [
            Problem(("protocols", *at), text)
            for at, text in deeper_than(self.protocols, sizes.depth)
        ]
        if size % sizes.patch_size or not 2 <= size // sizes.patch_size <= MOST_PATCHES:
            text = (
                f"{size} must be a multiple of the encoder's patch size ({sizes.patch_size}), "
                f"2 to {MOST_PATCHES} patches"
            )
            problems.append(Problem(("data", "image_size"), text))
        if problems:
            raise SpecError(problems)
        data = trained.data.model_copy(update={"eval": self.data, "image_size": size})
        changes = {"data": data, "evals": self.protocols, "compute": self.compute}
        return trained.model_copy(update=changes)
