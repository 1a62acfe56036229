"""What is told about what a job costs, measures and leaves behind."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from stoplab_api.bodies import Asked, Told


class EstimateAsk(Asked):
    """A spec that is not to be run yet."""

    spec: Any
    """What to estimate, as in a submit."""
    images: int | None = Field(default=None, ge=1, le=10**12)
    """Images of an epoch, where the server cannot count them (remote data). Default null."""


class RangeBody(Told):
    """A number and its band."""

    low: float
    value: float
    high: float


class ParametersBody(Told):
    """Trained weights."""

    encoder: int
    predictor: int
    trained: int
    """Both."""


class FlopsBody(Told):
    """Floating-point operations for one image, two a multiply-add."""

    target: float
    """EMA encoder on the whole image, forward."""
    context: float
    """Encoder on the kept patches, forward."""
    predictor: float
    """Predictor on every target block, forward."""
    train: float
    """One image of a training step, the way back included."""


class MemoryBody(Told):
    """Bytes of one worker at its peak; an estimate."""

    weights: int
    gradients: int
    optimizer: int
    """AdamW's two moments."""
    target: int
    """The EMA copy of the encoder."""
    activations: int
    checkpoint: int = 0
    """Of the first worker: the copy of its state from which it is written; 0 on a GPU."""
    runtime: int
    """Of the process, or the GPU's context, before any model."""
    total: RangeBody


class RestsOnBody(Told):
    """Why the numbers are what they are."""

    sentence: str
    facts: list[str]


class EstimateBody(Told):
    """What a job will take. Hours are null where they cannot be told; `rests_on` says why."""

    kind: str
    name: str
    spec_digest: str
    runs: int
    """Pretraining runs of the job."""
    concurrent: int
    """Runs at a time, in what jobs may reserve here."""
    images: int | None
    """Of one epoch."""
    parameters: ParametersBody | None
    flops_per_image: FlopsBody | None
    memory: MemoryBody | None
    samples_per_s: RangeBody | None
    """Of one run, all its workers together."""
    run_hours: RangeBody | None
    """Of one run, the mean over a study's."""
    gpu_hours: RangeBody | None
    cpu_hours: RangeBody | None
    """Hours of reserved CPUs."""
    wall_hours: RangeBody | None
    """On the clock, once it has started."""
    confidence: Literal["measured", "scaled", "assumed"]
    """`measured`: runs of this shape have finished in this lab. `scaled`: from the nearest run.
    `assumed`: from a table of assumptions."""
    rests_on: RestsOnBody


class SpentBody(Told):
    """Hours a job took, or how far they are from the estimate."""

    gpu_hours: float | None
    cpu_hours: float | None
    wall_hours: float | None


class WithinBody(Told):
    """Whether each lay inside its band."""

    gpu_hours: bool
    cpu_hours: bool
    wall_hours: bool


class HindsightBody(Told):
    """The estimate beside what the job took."""

    estimate: EstimateBody
    """Made anew, from the spec and the runs that had finished when the job was submitted."""
    measured: SpentBody | None
    """Waiting and pauses are not counted."""
    error: SpentBody | None
    """Measured over estimated, less 1: 0.2 is a fifth more than was told."""
    within: WithinBody | None
    reason: str | None
    """Why one of the above is null."""


class MetricBody(Told):
    """A metric and its last value."""

    name: str
    value: float | None
    """Null: it was no number."""


class MetricListBody(Told):
    """What a run has logged."""

    run: str
    """The run's name in the job: `run`, a cell of a study, or `parent`."""
    run_id: str | None
    """The run in MLflow; null until it is there."""
    source: Literal["mlflow", "spool"]
    """`spool`: MLflow does not answer, or does not have the run yet."""
    items: list[MetricBody]


class PointBody(Told):
    """One value."""

    step: int
    value: float | None
    """Null: it was no number, or infinite."""
    at: datetime


class SeriesBody(Told):
    """One metric by step."""

    name: str
    n_total: int
    """Points that were logged."""
    downsampled: bool
    """Whether some were left out; first, last, and each stretch's extremes stay."""
    points: list[PointBody]


class SeriesListBody(Told):
    """The metrics that were asked for."""

    run: str
    run_id: str | None
    source: Literal["mlflow", "spool"]
    series: list[SeriesBody]


class ArtifactBody(Told):
    """One file of a job."""

    path: str
    bytes: int
    modified: datetime


class ArtifactListBody(Told):
    """The files of a job that are meant for people, by path."""

    items: list[ArtifactBody]
