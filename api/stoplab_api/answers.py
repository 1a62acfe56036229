"""What is told about a job's history and cells, tokens, the lab's state, and problems."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from stoplab_api.bodies import Role, Scope, Told


class EventBody(Told):
    """One line of a job's history."""

    seq: int
    at: datetime
    actor: str
    verb: str
    from_state: str | None
    to_state: str | None
    reason_code: str | None
    message: str | None


class EventListBody(Told):
    """A job's history, oldest first."""

    items: list[EventBody]


class ProjectEventBody(EventBody):
    """One thing that happened in a project."""

    job_id: str | None
    """Null where it was no job's: a token's."""


class ProjectEventListBody(Told):
    """What happened in a project, oldest first."""

    items: list[ProjectEventBody]
    next_after: int | None
    """Give it as `after` for the next page; null on the last."""


class TrialBody(Told):
    """One cell of a sweep or comparison."""

    id: str
    index: int
    arm: str | None
    point: dict[str, Any]
    seed: int
    member: int | None = None
    """Of a population: whose leg this is."""
    generation: int | None = None
    """Of a population: which of the member's legs, from 0."""
    parent: str | None = None
    """Of a population: the cell from whose weights it goes on."""
    state: str
    metrics: dict[str, float]
    run_id: str | None
    """Its run in MLflow."""
    run_digest: str | None
    error: str | None
    started_at: datetime | None
    finished_at: datetime | None


class PointBody(Told):
    """A point of a sweep and what it reached."""

    point: dict[str, Any]
    mean: float
    """Of the objective, over the seeds."""
    ci95: tuple[float, float] | None
    """Interval of the mean; null with one seed."""
    n: int
    """Seeds."""


class BestBody(PointBody):
    """The best point of a sweep so far."""

    tied: list[PointBody] | None = None
    """Points that cannot be told apart from it (95 %), best first; null where nothing can be
    said, as with one seed a point."""
    n_points: int | None = None
    """Points that were compared, the best among them."""
    n_unjudged: int = 0
    """Those that nothing can be said of: fewer than two seeds in common with the best, or the
    same difference in all of them."""


class TrialListBody(Told):
    """The ledger as a table."""

    items: list[TrialBody]
    counts: dict[str, int]
    """Cells by state, filter or not."""
    best: BestBody | None = None
    """Of a sweep, once a point has a value."""


class MeBody(Told):
    """Who the token speaks for."""

    owner: str
    project: str
    role: Role
    scopes: list[Scope] | None = None
    """What of the role the token may use; null: all."""


class TokenBody(Told):
    """A token, without its secret."""

    id: str
    name: str
    owner: str
    project: str
    role: Role
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    scopes: list[Scope] | None = None
    """What of its role it may use; null: all."""
    last_used_at: datetime | None = None
    """To the minute; null: never."""


class FreshTokenBody(TokenBody):
    """A token that was just made."""

    secret: str
    """Shown this once; only its hash is kept."""


class TokenListBody(Told):
    """The tokens of the project."""

    items: list[TokenBody]


class ResourcesBody(Told):
    """CPUs and GPUs."""

    cpus: float
    gpus: float


class RunnerBody(Told):
    """What starts attempts."""

    kind: str
    alive: bool


class HeldBody(ResourcesBody):
    """What a project's started jobs have reserved."""

    jobs: int


class QuotaBody(Told):
    """What a project may hold at once; null: no bound of its own."""

    cpus: float | None
    gpus: float | None
    jobs: int | None


class ProjectBody(Told):
    """The caller's project."""

    name: str
    held: HeldBody
    quota: QuotaBody


class ClusterBody(Told):
    """What jobs may use and do use."""

    capacity: ResourcesBody
    """Declared, for all jobs together."""
    reserved: ResourcesBody
    """By started jobs."""
    jobs: dict[str, int]
    """Unfinished jobs by state."""
    runner: RunnerBody
    project: ProjectBody


class CheckBody(Told):
    """One part that readiness needs."""

    ok: bool
    message: str | None


class ReadyBody(Told):
    """Whether the server can do its work."""

    ready: bool
    checks: dict[str, CheckBody]


class Code(StrEnum):
    """Every kind of problem; ``type`` is its page below ``/v1/problems``."""

    MALFORMED_REQUEST = "malformed-request"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not-found"
    METHOD_NOT_ALLOWED = "method-not-allowed"
    ILLEGAL_MOVE = "illegal-move"
    CONFLICT = "conflict"
    VERSION_MISMATCH = "version-mismatch"
    BODY_TOO_LARGE = "body-too-large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported-media-type"
    RANGE_NOT_SATISFIABLE = "range-not-satisfiable"
    INVALID_BODY = "invalid-body"
    INVALID_SPEC = "invalid-spec"
    KEY_REUSED = "idempotency-key-reused"
    PRECONDITION_REQUIRED = "precondition-required"
    RATE_LIMITED = "rate-limited"
    INTERNAL = "internal"
    DATABASE_UNAVAILABLE = "database-unavailable"
    CLUSTER_UNAVAILABLE = "cluster-unavailable"
    TRACKER_UNAVAILABLE = "tracker-unavailable"
    NOT_READY = "not-ready"


class FieldError(Told):
    """One thing wrong with a request."""

    pointer: str
    """Field of the body as a JSON pointer (RFC 6901), or `?name` for a query parameter."""
    message: str
    """What is wrong and what would be right."""


class ProblemBody(Told):
    """The body of every answer from 400 up (RFC 9457)."""

    type: str
    """Page that explains this kind of problem."""
    title: str
    """The kind in a sentence."""
    status: int
    """The HTTP status again."""
    detail: str
    """This occurrence in a sentence."""
    instance: str
    """Path of the request."""
    code: str
    """The kind, for programs."""
    request_id: str
    """As in the header X-Request-ID, and in the server's log."""
    errors: list[FieldError] = []
    """Every field at fault."""
