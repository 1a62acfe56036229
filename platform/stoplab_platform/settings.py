"""The only reader of the environment."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from stoplab_platform.errors import SettingsError
from stoplab_platform.paths import Home


class Settings(BaseSettings):
    """What the environment says, under ``STOPLAB_``, beside MLflow's and Ray's own names."""

    model_config = SettingsConfigDict(env_prefix="STOPLAB_", extra="ignore", frozen=True)

    home: Path = Path(".stoplab")
    """Folder of the lab's state. Default .stoplab in the working folder."""
    database_url: str | None = None
    """SQLAlchemy URL; null: SQLite in the home."""
    api_url: str | None = None
    """Address of the REST API for clients; null: the one that `stoplab up` wrote."""
    token: str | None = Field(default=None, repr=False)
    """Bearer token for clients; null: the local one that `stoplab up` wrote."""
    capacity_cpus: float | None = None
    """CPUs that jobs may reserve; null: this machine's."""
    capacity_gpus: float = 0
    """GPUs that jobs may reserve."""
    job_id: str | None = None
    """Set by the supervisor: the job a process belongs to."""
    attempt: int | None = None
    """Set by the supervisor: the attempt a process belongs to."""
    reconcile_period_s: float = 2.0
    """Seconds between two passes of the reconciler."""
    log_format: Literal["text", "json"] = "text"
    """How servers write their logs: key=value pairs, or JSON lines."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Records below this level are left out of servers' logs."""
    mlflow_tracking_uri: str | None = Field(default=None, validation_alias="MLFLOW_TRACKING_URI")
    """Where MLflow listens; null: SQLite in the home."""
    ray_address: str | None = Field(default=None, validation_alias="RAY_ADDRESS")
    """Ray's dashboard address (http://...), or GCS address inside a job."""
    ray_auth_mode: str | None = Field(default=None, validation_alias="RAY_AUTH_MODE")
    """Ray's own switch for token authentication."""
    ray_auth_token_path: Path | None = Field(default=None, validation_alias="RAY_AUTH_TOKEN_PATH")
    """File of Ray's token."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            # Its own text shows what was given, and a token may be among it.
            raise SettingsError("; ".join(map(_sentence, error.errors()))) from None

    @model_validator(mode="after")
    def _absolute_home(self) -> Self:
        if not self.home.is_absolute():
            if "RAY_JOB_ID" in os.environ or "RAY_RAYLET_PID" in os.environ:
                raise SettingsError(
                    f"STOPLAB_HOME is {self.home}: inside a Ray job it must be absolute, "
                    'as `eval "$(stoplab env)"` sets it'
                )
            object.__setattr__(self, "home", Path.cwd() / self.home)
        return self

    @cached_property
    def folders(self) -> Home:
        """The home's files."""
        return Home(self.home)

    @property
    def capacity_declared(self) -> bool:
        """Whether somebody said what jobs may reserve."""
        return self.capacity_cpus is not None

    @property
    def tracking_uri(self) -> str:
        """MLflow's address, SQLite in the home unless one is given."""
        if self.mlflow_tracking_uri:
            return self.mlflow_tracking_uri
        self.folders.mlflow.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{self.folders.mlflow_database}"

    @property
    def database(self) -> str:
        """The store's SQLAlchemy URL."""
        return self.database_url or f"sqlite:///{self.folders.database}"


def _sentence(detail: ErrorDetails) -> str:
    name = ".".join(str(part) for part in detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    if not name:
        return message
    return f"{f'STOPLAB_{name.upper()}' if name.islower() else name}: {message}"
