"""What the store gives out: plain frozen values, no rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from stoplab_platform.jobs.states import ReasonCode, State
from stoplab_platform.sources import named_jobs


class Intent(StrEnum):
    """Where a STOPPING job goes."""

    CANCELLED = "CANCELLED"
    PAUSED = "PAUSED"
    FAILED = "FAILED"  # a limit is reached


class Role(StrEnum):
    """What a principal may do in its project."""

    VIEWER = "viewer"
    SUBMITTER = "submitter"
    ADMIN = "admin"


class Scope(StrEnum):
    """A part of what a role may do; a token with scopes may do no more than them."""

    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    TOKENS_ADMIN = "tokens:admin"


@dataclass(frozen=True)
class NewJob:
    """What a submit decides."""

    id: str
    kind: str
    name: str
    project: str
    owner: str
    spec: Mapping[str, Any]
    spec_digest: str
    labels: Mapping[str, str] = field(default_factory=dict)
    priority: int = 0
    retry_of: str | None = None
    extends: str | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The jobs that it names: to go on from, or for their weights."""
        weights = (named for _, named in named_jobs(self.spec))
        return tuple(sorted({*filter(None, (self.retry_of or self.extends, *weights))}))


@dataclass(frozen=True)
class Job:
    """One job, as one version of its row tells it."""

    id: str
    kind: str
    name: str
    project: str
    owner: str
    labels: Mapping[str, str]
    priority: int
    spec: Mapping[str, Any]
    spec_digest: str
    run_digest: str | None
    retry_of: str | None
    extends: str | None
    limits: Mapping[str, Any]
    """What was changed of its limits since it was submitted; its spec stays."""
    version: int
    attempt: int
    state: State
    intent: Intent | None
    reason_code: ReasonCode | None
    message: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    settled: bool
    """Whether the tracker was told how the job ended."""
    hidden: bool


@dataclass(frozen=True)
class Event:
    """One line of a job's history, or (without a job) of its project's."""

    seq: int
    job_id: str | None
    at: datetime
    actor: str
    verb: str
    from_state: State | None
    to_state: State | None
    reason_code: ReasonCode | None
    message: str | None


@dataclass(frozen=True)
class Token:
    """An API token, without its secret."""

    id: str
    name: str
    project: str
    owner: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    scopes: frozenset[Scope] | None = None
    """What of its role it may use; None: all."""
    last_used_at: datetime | None = None
    """To the minute."""


@dataclass(frozen=True)
class Principal:
    """Who asks."""

    owner: str
    project: str
    role: Role
    scopes: frozenset[Scope] | None = None
    """What of the role may be used; None: all."""
    token_id: str | None = None


@dataclass(frozen=True)
class IdempotencyRecord:
    """A client's key and the digest of the request it came with: its path and its body."""

    key: str
    body_digest: str


@dataclass(frozen=True)
class Submitted:
    """The answer to a submit: a new job, or the one that the same key made before."""

    job: Job
    replayed: bool


@dataclass(frozen=True)
class JobQuery:
    """Which jobs to list, newest first."""

    project: str | None = None
    states: tuple[State, ...] = ()
    kinds: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    prefix: str | None = None
    """Start of the name or id, in any case."""
    limit: int = 50
    cursor: str | None = None


@dataclass(frozen=True)
class Page:
    """One page of jobs; ``next_cursor`` is None on the last."""

    items: tuple[Job, ...]
    next_cursor: str | None
