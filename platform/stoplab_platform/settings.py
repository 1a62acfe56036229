"""The only reader of the environment."""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    Json,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from stoplab_platform.errors import SettingsError
from stoplab_platform.jobs.states import TERMINAL, State
from stoplab_platform.paths import Home
from stoplab_platform.quotas import OTHERS, Quota

DATA_SCHEMES = ("file", "s3", "gs", "gcs", "az", "abfs", "hf", "http", "https", "memory")


def _parts(sign: str) -> BeforeValidator:
    """Reads a list from text, its items parted by ``sign``."""
    return BeforeValidator(
        lambda given: [one for one in given.split(sign) if one] if isinstance(given, str) else given
    )


class Settings(BaseSettings):
    """What the environment says, under ``STOPLAB_``, beside MLflow's and Ray's own names."""

    model_config = SettingsConfigDict(env_prefix="STOPLAB_", extra="ignore", frozen=True)

    home: Path = Path(".stoplab")
    """Folder of the lab's state. Default .stoplab in the working folder."""
    database_url: str | None = Field(default=None, repr=False)
    """The database, as `postgresql://user:password@host:5432/name`; null: SQLite in the home."""
    api_url: str | None = None
    """Address of the REST API for clients; null: the one that `stoplab up` wrote."""
    token: str | None = Field(default=None, repr=False)
    """Bearer token for clients; null: the local one that `stoplab up` wrote."""
    capacity_cpus: float | None = None
    """CPUs that jobs may reserve; null: this machine's."""
    capacity_gpus: float = 0
    """GPUs that jobs may reserve."""
    quotas: Annotated[dict[str, Quota], NoDecode] = {}
    """What projects may hold at once, as JSON: project (`*`: each other one) to `cpus`, `gpus`,
    `jobs`."""
    job_id: str | None = None
    """Set by the supervisor: the job a process belongs to."""
    attempt: int | None = None
    """Set by the supervisor: the attempt a process belongs to."""
    project: str = "default"
    """Set for attempts: the project that a process works for, and so whose secrets it reads."""
    secrets_on_nodes: bool = False
    """Secrets are in the nodes' environment alone, so that the API does not look for them."""
    data_roots: Annotated[tuple[Path, ...] | None, NoDecode, _parts(os.pathsep)] = None
    """Folders that local paths in specs must lie below; null: any."""
    data_schemes: Annotated[tuple[str, ...], NoDecode, _parts(",")] = DATA_SCHEMES
    """Schemes of URLs that specs may name."""
    reconcile_period_s: float = 2.0
    """Seconds between two passes of the reconciler."""
    room_hours: float = Field(default=24, ge=0)
    """Hours that an attempt waits for a cluster that has no room for it yet; 0: any time."""
    webhook_url: str | None = Field(default=None, repr=False)
    """Address that is told when jobs end; `secret://NAME` for one that is a secret itself."""
    webhook_secret: str | None = Field(default=None, repr=False)
    """Key of the signature; `secret://NAME`, as a rule."""
    webhook_states: Annotated[tuple[State, ...], NoDecode, _parts(",")] = tuple(sorted(TERMINAL))
    """States that are told."""
    keep_checkpoints_days: float | None = Field(default=None, ge=0)
    """Days after a job's end until its checkpoints go; null: never."""
    keep_logs_days: float | None = Field(default=None, ge=0)
    """Days after a job's end until its logs go; null: never."""
    keep_keys_days: float | None = Field(default=30, ge=0)
    """Days that a client's idempotency key is remembered; null: for ever."""
    cache_bytes: int | None = Field(default=None, ge=0)
    """What the cache may hold; null: anything."""
    cache_dir: Path | None = None
    """Folder of the cache, on each machine's own disk as a rule; null: cache/ in the home."""
    rate_per_s: float = Field(default=200, ge=0)
    """Requests a second that one token may make, on each replica; 0: no limit."""
    rate_burst: int = Field(default=2000, ge=1)
    """Requests that it may make at once."""
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

    @field_validator("quotas", mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        return TypeAdapter(Json[Any]).validate_python(value) if isinstance(value, str) else value

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
        return Home(self.home, self.cache_dir and self.cache_dir.absolute())

    def quota(self, project: str) -> Quota:
        """What a project may hold at once."""
        return self.quotas.get(project, self.quotas.get(OTHERS, Quota()))

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

    def secret_variable(self, name: str) -> str | None:
        """A secret of the environment: STOPLAB_SECRET_ and its name in capitals."""
        return os.environ.get(f"STOPLAB_SECRET_{re.sub('[.-]', '_', name).upper()}")

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
