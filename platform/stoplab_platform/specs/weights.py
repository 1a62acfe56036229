"""Which weights a spec means: those of a job, of a run in MLflow, or at a path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, model_serializer

from stoplab_platform.errors import Problem
from stoplab_platform.specs.base import Spec


class CheckpointRef(Spec):
    """Which weights: exactly one of job, mlflow_run and path."""

    job: str | None = None
    """Id of a finished pretraining job, or of a study, whose run `cell` names."""
    cell: str | None = None
    """Which of a study's runs. Default null: the job's only one."""
    mlflow_run: str | None = None
    """Id of a run in MLflow."""
    path: str | None = None
    """Path of a checkpoint folder, or of a run's folder."""

    def checks(self) -> Iterator[Problem]:
        """Exactly one."""
        given = [name for name in ("job", "mlflow_run", "path") if getattr(self, name)]
        if len(given) != 1:
            yield Problem((), f"give exactly one of job, mlflow_run, path; got {given}")
        if self.cell and not self.job:
            yield Problem(("cell",), f"{self.cell!r} is one of a study's runs; give its job")

    @property
    def spelled(self) -> str:
        """The weights in a message."""
        if self.path:
            return self.path
        job = f"job {self.job}/{self.cell}" if self.cell else f"job {self.job}"
        return job if self.job else f"MLflow run {self.mlflow_run}"


class Start(CheckpointRef):
    """Weights to start from; a path alone may be written as a text."""

    path: str | None = Field(default=None)
    """A checkpoint or a run's folder, a checkpoint file of the I-JEPA or StoP repositories, or an
    encoder in timm's names; path, or URL of a file."""
    other_positions: Literal["refuse", "leave_out"] = "refuse"
    """What becomes of a file whose encoder has other positions than the fixed sin-cos table of
    encoders here, as a rule learned ones (timm, DINO): `refuse` it, or `leave_out` its table, and
    its blocks have to learn the new one. Default refuse."""

    @model_serializer(mode="wrap")
    def _in_short(self, written: SerializerFunctionWrapHandler) -> Any:
        """A path of which nothing else is said is written as that text."""
        data: dict[str, Any] = written(self)
        return self.path if self.path and self == Start(path=self.path) else data


def _as_path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


StartSpec = Annotated[Start, BeforeValidator(_as_path, json_schema_input_type=str | Start)]
