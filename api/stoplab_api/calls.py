"""Every REST call as a value. Nothing here does I/O.

A new call is a function here, and a line in each class of `client`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from ulid import ULID

from stoplab_api.answers import (
    ClusterBody,
    EventBody,
    EventListBody,
    FreshTokenBody,
    MeBody,
    ProjectEventListBody,
    TokenBody,
    TokenListBody,
    TrialListBody,
)
from stoplab_api.bodies import DryRunBody, JobBody, JobListBody, Role, Scope
from stoplab_api.call import Call, Stream, asked, content, document, model, nothing, posted, segment
from stoplab_api.findings import (
    ArtifactBody,
    ArtifactListBody,
    EstimateBody,
    HindsightBody,
    MetricListBody,
    SeriesListBody,
)
from stoplab_platform.specs.base import Spec

AnySpecData = Spec | Mapping[str, Any]


def submit(
    spec: AnySpecData,
    *,
    labels: Mapping[str, str] | None = None,
    priority: int = 0,
    key: str | None = None,
) -> Call[JobBody]:
    """Have a job run; the same ``key`` gives the same job. By default a fresh key."""
    body = _submit_body(spec, labels, priority)
    return posted("/v1/jobs", model(JobBody), body, headers=_keyed(key), safe=True)


def dry_run(
    spec: AnySpecData, *, labels: Mapping[str, str] | None = None, priority: int = 0
) -> Call[DryRunBody]:
    """What a submit would be taken as; ApiError with every mistake."""
    body, params = _submit_body(spec, labels, priority), {"dry_run": "true"}
    return posted("/v1/jobs", model(DryRunBody), body, params=params, safe=True)


def get(job_id: str) -> Call[JobBody]:
    """One job."""
    return asked(_job(job_id), model(JobBody))


def list_jobs(
    *,
    states: Sequence[str] = (),
    kinds: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    q: str | None = None,
    limit: int = 50,
    cursor: str | None = None,
) -> Call[JobListBody]:
    """One page of jobs, newest first: in any of the states, with all of the labels."""
    params = {
        "state": list(states),
        "kind": list(kinds),
        "label": [f"{name}:{value}" for name, value in (labels or {}).items()],
        "q": q,
        "limit": limit,
        "cursor": cursor,
    }
    return asked("/v1/jobs", model(JobListBody), params)


def change(
    job: JobBody,
    *,
    labels: Mapping[str, str | None] | None = None,
    priority: int | None = None,
    limits: Mapping[str, float | None] | None = None,
) -> Call[JobBody]:
    """Set labels (None takes one away), priority or limits; ApiError 412 if it has changed."""
    wished = {"labels": labels, "priority": priority, "limits": limits}
    body = {name: value for name, value in wished.items() if value is not None}
    headers = {"If-Match": f'"{job.version}"'}
    return Call("PATCH", _job(job.id), model(JobBody), json=body, headers=headers)


def cancel(job_id: str) -> Call[JobBody]:
    """End a job; a finished one comes back unchanged."""
    return posted(_job(job_id, "cancel"), model(JobBody), safe=True)


def pause(job_id: str) -> Call[JobBody]:
    """Stop a job at its next checkpoint."""
    return posted(_job(job_id, "pause"), model(JobBody))


def resume(job_id: str) -> Call[JobBody]:
    """Let a paused job go on."""
    return posted(_job(job_id, "resume"), model(JobBody))


def retry(
    job_id: str, *, limits: Mapping[str, float | None] | None = None, key: str | None = None
) -> Call[JobBody]:
    """A new job with a finished one's spec, under other limits where some are given."""
    body = {} if limits is None else {"limits": dict(limits)}
    return posted(_job(job_id, "retry"), model(JobBody), body, headers=_keyed(key), safe=True)


def extend(job_id: str, additions: Mapping[str, Any], *, key: str | None = None) -> Call[JobBody]:
    """A new job: a finished study with more in it, as `{"seeds": [5, 6]}`."""
    path, body = _job(job_id, "extend"), dict(additions)
    return posted(path, model(JobBody), body, headers=_keyed(key), safe=True)


def delete(job_id: str) -> Call[None]:
    """Remove a finished job and its folder."""
    return Call("DELETE", _job(job_id), nothing)


def logs(job_id: str, *, rank: int | None = None, tail: int | None = None) -> Stream[str]:
    """What the job wrote, piece by piece."""
    call = asked(_job(job_id, "logs"), nothing, {"rank": rank, "tail": tail})
    return Stream(call, "log", str)


def events(job_id: str) -> Call[Sequence[EventBody]]:
    """The job's history, oldest first."""
    return asked(_job(job_id, "events"), lambda answer: model(EventListBody)(answer).items)


def project_events(
    *, after: int = 0, limit: int = 100, actor: str | None = None, verb: str | None = None
) -> Call[ProjectEventListBody]:
    """One page of what happened in the project, oldest first (for administrators)."""
    params = {"after": after, "limit": limit, "actor": actor, "verb": verb}
    return asked("/v1/events", model(ProjectEventListBody), params)


def estimate(spec: AnySpecData, *, images: int | None = None) -> Call[EstimateBody]:
    """What a spec would take; ``images`` of an epoch, where the server cannot count them."""
    body = {"spec": _plain(spec), "images": images}
    return posted("/v1/estimates", model(EstimateBody), body, safe=True)


def hindsight(job_id: str) -> Call[HindsightBody]:
    """A job's estimate beside what it took."""
    return asked(_job(job_id, "estimate"), model(HindsightBody))


def metrics(job_id: str, *, run: str | None = None) -> Call[MetricListBody]:
    """The last value of every metric: of a run, of a study's cell, or of the study itself."""
    return asked(_job(job_id, "metrics"), model(MetricListBody), {"run": run})


def series(
    job_id: str, names: Sequence[str], *, run: str | None = None, points: int = 500
) -> Call[SeriesListBody]:
    """Metrics by step, thinned to at most ``points`` each."""
    params = {"name": list(names), "run": run, "points": points}
    return asked(_job(job_id, "metrics"), model(SeriesListBody), params)


def artifacts(job_id: str) -> Call[Sequence[ArtifactBody]]:
    """The job's files that are meant for people."""
    return asked(_job(job_id, "artifacts"), lambda answer: model(ArtifactListBody)(answer).items)


def artifact(job_id: str, path: str) -> str:
    """Where an artifact is fetched from."""
    return _job(job_id, "artifacts", quote(path))


def target(path: str, to: Path) -> Path:
    """The file that an artifact becomes: in a folder it keeps its name."""
    return to / path.rpartition("/")[2] if to.is_dir() else to


def follow_events(job_id: str) -> Stream[EventBody]:
    """The job's history as it happens, until the job ends."""
    return Stream(asked(_job(job_id, "events"), nothing), "event", EventBody.model_validate_json)


def trials(
    job_id: str,
    *,
    states: Sequence[str] = (),
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    point: Sequence[str] = (),
    least: Sequence[str] = (),
    most: Sequence[str] = (),
    sort: str = "index",
) -> Call[TrialListBody]:
    """The cells of a study: ``point`` holds words as `field:value`, bounds `metric:value`."""
    params = _trial_params(states, arms, seeds, point, least, most, sort)
    return asked(_job(job_id, "trials"), model(TrialListBody), params)


def trial_table(
    job_id: str,
    format: Literal["csv", "parquet"] = "csv",
    *,
    states: Sequence[str] = (),
    arms: Sequence[str] = (),
    seeds: Sequence[int] = (),
    point: Sequence[str] = (),
    least: Sequence[str] = (),
    most: Sequence[str] = (),
    sort: str = "index",
) -> Call[bytes]:
    """The cells as a file."""
    params = {**_trial_params(states, arms, seeds, point, least, most, sort), "format": format}
    return asked(_job(job_id, "trials"), content, params)


def comparison(job_id: str) -> Call[dict[str, Any]]:
    """A comparison's result; ApiError 404 while there is none."""
    return asked(_job(job_id, "comparison"), document)


def surface(job_id: str) -> Call[dict[str, Any]]:
    """A sweep's response surface; ApiError 404 while there is none."""
    return asked(_job(job_id, "surface"), document)


def report(
    job_id: str, format: str, *, of: Literal["comparison", "surface"] = "comparison"
) -> Call[bytes]:
    """The report as a file: html, png, json, of a comparison also md and tex."""
    return asked(_job(job_id, of), content, {"format": format})


def me() -> Call[MeBody]:
    """Whom the token speaks for."""
    return asked("/v1/me", model(MeBody))


def cluster() -> Call[ClusterBody]:
    """Capacity, reservations, and whether the cluster answers."""
    return asked("/v1/cluster", model(ClusterBody))


def schema(kind: str) -> Call[dict[str, Any]]:
    """The JSON schema of a kind of spec."""
    return asked(f"/v1/schema/{segment(kind)}", document)


def tokens() -> Call[Sequence[TokenBody]]:
    """The project's tokens (for administrators)."""
    return asked("/v1/tokens", lambda answer: model(TokenListBody)(answer).items)


def create_token(
    name: str,
    *,
    owner: str,
    role: Role,
    expires_in_days: float | None = None,
    scopes: Sequence[Scope] | None = None,
) -> Call[FreshTokenBody]:
    """A new token with its secret, shown this once (for administrators)."""
    body = {"name": name, "owner": owner, "role": role, "expires_in_days": expires_in_days,
            "scopes": None if scopes is None else list(scopes)}  # fmt: skip
    return posted("/v1/tokens", model(FreshTokenBody), body)


def rotate_token(token_id: str) -> Call[FreshTokenBody]:
    """A new secret for a token, shown this once; the old one ends (for administrators)."""
    return posted(f"/v1/tokens/{segment(token_id)}/rotate", model(FreshTokenBody))


def revoke_token(token_id: str) -> Call[None]:
    """End a token (for administrators)."""
    return Call("DELETE", f"/v1/tokens/{segment(token_id)}", nothing, safe=True)


def _job(job_id: str, *more: str) -> str:
    return "/".join(("/v1/jobs", segment(job_id), *more))


def _keyed(key: str | None) -> dict[str, str]:
    return {"Idempotency-Key": key or str(ULID())}


def _submit_body(
    spec: AnySpecData, labels: Mapping[str, str] | None, priority: int
) -> dict[str, Any]:
    return {"spec": _plain(spec), "labels": dict(labels or {}), "priority": priority}


def _plain(spec: AnySpecData) -> dict[str, Any]:
    return spec.plain() if isinstance(spec, Spec) else dict(spec)


def _trial_params(
    states: Sequence[str],
    arms: Sequence[str],
    seeds: Sequence[int],
    point: Sequence[str],
    least: Sequence[str],
    most: Sequence[str],
    sort: str,
) -> dict[str, Any]:
    lists = {
        "state": states, "arm": arms, "seed": seeds, "point": point, "min": least, "max": most
    }  # fmt: skip
    return {**{name: list(values) for name, values in lists.items()}, "sort": sort}
