"""What travels: requests, and jobs in answers. No server code here, so that clients share it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from stoplab_platform.specs.base import field_types
from stoplab_platform.specs.limits import MOST_HOURS, MOST_RUNS

LabelKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w./-]{0,62}$")]
LabelValue = Annotated[str, StringConstraints(max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")]
Priority = Annotated[int, Field(ge=-1000, le=1000)]
MOST_LABELS = 64
"""Of one job."""
Word = Annotated[str, StringConstraints(pattern=r"^[\w.@-]{1,64}$")]
Role = Literal["viewer", "submitter", "admin"]
Scope = Literal["jobs:read", "jobs:write", "tokens:admin"]


class Asked(BaseModel):
    """Requests are strict: what is not known is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, data: Any) -> Any:
        """JSON has one kind of number: 3.0 is as whole as 3."""
        if not isinstance(data, Mapping):
            return data
        whole = {name for name, types in field_types(cls).items() if types == {int}}
        return {name: _whole(value) if name in whole else value for name, value in data.items()}


def _whole(value: Any) -> Any:
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Told(BaseModel):
    """Answers may grow: clients must take members they do not know."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


class SubmitBody(Asked):
    """A job to be run."""

    spec: Any
    """What to run, as in a spec file; its `kind` is pretrain, sweep, compare or evaluate."""
    labels: dict[LabelKey, LabelValue] = Field(default={}, max_length=MOST_LABELS)
    """Free marks to find the job by. Default none."""
    priority: Priority = 0
    """Higher ones start first. Default 0."""


class LimitsChange(Asked):
    """Limits to set beside the spec, which stays; null lifts one, what is not named stays."""

    trials: int | None = Field(default=None, ge=1, le=MOST_RUNS)
    """Most runs."""
    gpu_hours: float | None = Field(default=None, gt=0, le=MOST_HOURS)
    """Most GPU-hours."""
    wall_hours: float | None = Field(default=None, gt=0, le=MOST_HOURS)
    """Most hours on the clock."""
    max_concurrent: int | None = Field(default=None, ge=1, le=MOST_RUNS)
    """Most runs at a time."""


class AxisValues(Asked):
    """Values for an axis that lists them; name the list as the study does."""

    grid: list[Any] | None = Field(default=None, min_length=1)
    """Values to add to a `grid`."""
    choice: list[Any] | None = Field(default=None, min_length=1)
    """Values to add to a `choice`."""


class MoreSamples(Asked):
    """More points of a drawn sweep."""

    samples: int = Field(ge=1, le=MOST_RUNS)
    """Points in all."""


class ExtendBody(Asked):
    """What to add to a finished sweep or comparison, in its spec's own shape."""

    seeds: list[Annotated[int, Field(ge=0, lt=2**31)]] | None = Field(default=None, min_length=1)
    """A comparison's new blocks."""
    space: dict[str, AxisValues] | None = None
    """New values of a sweep's axes."""
    search: MoreSamples | None = None
    """More points of a sweep that draws them."""
    replicates: int | None = Field(default=None, ge=1, le=1000)
    """Seeds per point of a sweep, in all."""
    limits: LimitsChange | None = None
    """Limits to set: the added runs count as well."""


class PatchBody(Asked):
    """Changes to a job (RFC 7396): what is not named stays."""

    labels: dict[LabelKey, LabelValue | None] | None = Field(default=None, max_length=MOST_LABELS)
    """Labels to set; null takes one away."""
    priority: Priority | None = None
    """The new priority."""
    limits: LimitsChange | None = None
    """New limits. A study that runs obeys before its next run starts. A single run has gpu_hours
    and wall_hours."""


class RetryBody(Asked):
    """What a retry has otherwise than the job before it; nothing needs to be sent."""

    limits: LimitsChange | None = None
    """Limits to set: a retry of a job that ended at one."""


class NewTokenBody(Asked):
    """A token to be made, in the maker's project."""

    name: Word
    """What it is for."""
    owner: Word
    """Who uses it: owner of the jobs it submits."""
    role: Role = "submitter"
    """What it may do. Default submitter."""
    scopes: list[Scope] | None = Field(default=None, min_length=1)
    """What of its role it may use; null: all. No more than the maker's own. Default null."""
    expires_in_days: float | None = Field(default=None, gt=0, le=3660)
    """Days until it stops working; null: never. Default null."""


class ProgressBody(Told):
    """How far a job is; a study counts its cells."""

    step: int
    steps: int
    epoch: int
    eta_s: float | None
    """Seconds to go."""
    samples_per_s: float | None
    warning: str | None = None
    """What is wrong with a run that goes on: its features collapsed."""


class QueueBody(Told):
    """Why a job waits."""

    position: int
    """1: the next to start."""
    reason: str


class MoveBody(Told):
    """One change of state."""

    state: str
    at: datetime
    reason_code: str | None


class StatusBody(Told):
    """Where a job stands."""

    state: str
    reason_code: str | None
    message: str | None
    attempt: int
    """Tries so far."""
    progress: ProgressBody | None
    queue: QueueBody | None
    allowed_actions: list[str]
    history: list[MoveBody]


class JobBody(Told):
    """A job."""

    id: str
    kind: str
    name: str
    project: str
    owner: str
    labels: dict[str, str]
    priority: int
    spec: dict[str, Any]
    """The whole spec, defaults filled in."""
    spec_digest: str
    run_digest: str | None
    retry_of: str | None
    extends: str | None
    limits: dict[str, Any]
    """What was changed of the spec's limits since; empty where nothing was."""
    version: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    status: StatusBody
    links: dict[str, str | None]


class JobListBody(Told):
    """One page of jobs, newest first."""

    items: list[JobBody]
    next_cursor: str | None
    """Give it as `cursor` for the next page; null on the last."""


class DryRunBody(Told):
    """What a submit would have been taken as."""

    dry_run: Literal[True] = True
    kind: str
    name: str
    labels: dict[str, str]
    priority: int
    spec: dict[str, Any]
    """The whole spec, defaults filled in."""
    spec_digest: str
    demand: dict[str, float]
    """What the job would reserve: cpus, gpus."""
    links: dict[str, str]
    """`estimate`: where to send the same spec for what it would take."""
