"""The REST client: typed, synchronous, needs no server code.

Every call that may be repeated is repeated when the server or the line is away for a moment: a
submit too, because it carries an idempotency key of its own making.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
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
from stoplab_api.downloads import Download
from stoplab_api.findings import (
    ArtifactBody,
    ArtifactListBody,
    EstimateBody,
    HindsightBody,
    MetricListBody,
    SeriesListBody,
)
from stoplab_api.transport import PATIENCE_S, ApiError, Transport, Unreachable
from stoplab_platform.jobs.states import TERMINAL
from stoplab_platform.specs.base import Spec

__all__ = ["ApiError", "Client", "Unreachable"]

AnySpecData = Spec | Mapping[str, Any]


class Client:
    """A project's jobs, as one token sees them. Raises ApiError and Unreachable."""

    def __init__(self, url: str, token: str | None, *, timeout_s: float = 30.0) -> None:
        self._api = Transport(url, token, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._api.close()

    def submit(
        self,
        spec: AnySpecData,
        *,
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
        key: str | None = None,
    ) -> JobBody:
        """Have a job run; the same ``key`` gives the same job. By default a fresh key."""
        headers = {"Idempotency-Key": key or str(ULID())}
        body = _submit_body(spec, labels, priority)
        answer = self._api.ask("POST", "/v1/jobs", json=body, headers=headers, safe=True)
        return JobBody.model_validate_json(answer.content)

    def dry_run(
        self,
        spec: AnySpecData,
        *,
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
    ) -> DryRunBody:
        """What a submit would be taken as; ApiError with every mistake."""
        body = _submit_body(spec, labels, priority)
        answer = self._api.ask("POST", "/v1/jobs?dry_run=true", json=body, safe=True)
        return DryRunBody.model_validate_json(answer.content)

    def get(self, job_id: str) -> JobBody:
        """One job."""
        return JobBody.model_validate_json(self._api.get(f"/v1/jobs/{job_id}").content)

    def list(
        self,
        *,
        states: Sequence[str] = (),
        kinds: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        q: str | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> JobListBody:
        """One page of jobs, newest first: in any of the states, with all of the labels."""
        params = {
            "state": list(states),
            "kind": list(kinds),
            "label": [f"{name}:{value}" for name, value in (labels or {}).items()],
            "q": q,
            "limit": limit,
            "cursor": cursor,
        }
        return JobListBody.model_validate_json(self._api.get("/v1/jobs", params).content)

    def change(
        self,
        job: JobBody,
        *,
        labels: Mapping[str, str | None] | None = None,
        priority: int | None = None,
        limits: Mapping[str, float | None] | None = None,
    ) -> JobBody:
        """Set labels (None takes one away), priority or limits; ApiError 412 if it has changed."""
        wished = {"labels": labels, "priority": priority, "limits": limits}
        body = {name: value for name, value in wished.items() if value is not None}
        answer = self._api.ask(
            "PATCH", f"/v1/jobs/{job.id}", json=body, headers={"If-Match": f'"{job.version}"'}
        )
        return JobBody.model_validate_json(answer.content)

    def cancel(self, job_id: str) -> JobBody:
        """End a job; a finished one comes back unchanged."""
        return self._act(job_id, "cancel", safe=True)

    def pause(self, job_id: str) -> JobBody:
        """Stop a job at its next checkpoint."""
        return self._act(job_id, "pause")

    def resume(self, job_id: str) -> JobBody:
        """Let a paused job go on."""
        return self._act(job_id, "resume")

    def retry(
        self,
        job_id: str,
        *,
        limits: Mapping[str, float | None] | None = None,
        key: str | None = None,
    ) -> JobBody:
        """A new job with a finished one's spec, under other limits where some are given."""
        headers = {"Idempotency-Key": key or str(ULID())}
        body = {} if limits is None else {"limits": dict(limits)}
        path = f"/v1/jobs/{job_id}/retry"
        answer = self._api.ask("POST", path, json=body, headers=headers, safe=True)
        return JobBody.model_validate_json(answer.content)

    def extend(
        self, job_id: str, additions: Mapping[str, Any], *, key: str | None = None
    ) -> JobBody:
        """A new job: a finished study with more in it, as `{"seeds": [5, 6]}`."""
        headers = {"Idempotency-Key": key or str(ULID())}
        path = f"/v1/jobs/{job_id}/extend"
        answer = self._api.ask("POST", path, json=dict(additions), headers=headers, safe=True)
        return JobBody.model_validate_json(answer.content)

    def delete(self, job_id: str) -> None:
        """Remove a finished job and its folder."""
        self._api.ask("DELETE", f"/v1/jobs/{job_id}")

    def logs(
        self,
        job_id: str,
        *,
        follow: bool = False,
        rank: int | None = None,
        tail: int | None = None,
    ) -> Iterator[str]:
        """What the job wrote, piece by piece; with ``follow`` until it ends, over lost lines."""
        path, params = f"/v1/jobs/{job_id}/logs", {"rank": rank, "tail": tail}
        if not follow:
            yield from self._api.text(path, params)
            return
        for event in self._api.events(path, params):
            if event.name == "log":
                yield event.data

    def events(self, job_id: str) -> Sequence[EventBody]:
        """The job's history, oldest first."""
        answer = self._api.get(f"/v1/jobs/{job_id}/events")
        return EventListBody.model_validate_json(answer.content).items

    def follow_events(self, job_id: str) -> Iterator[EventBody]:
        """The job's history as it happens, until the job ends."""
        for event in self._api.events(f"/v1/jobs/{job_id}/events", {}):
            if event.name == "event":
                yield EventBody.model_validate_json(event.data)

    def project_events(
        self,
        *,
        after: int = 0,
        limit: int = 100,
        actor: str | None = None,
        verb: str | None = None,
    ) -> ProjectEventListBody:
        """One page of what happened in the project, oldest first (for administrators)."""
        params = {"after": after, "limit": limit, "actor": actor, "verb": verb}
        answer = self._api.get("/v1/events", params)
        return ProjectEventListBody.model_validate_json(answer.content)

    def estimate(self, spec: AnySpecData, *, images: int | None = None) -> EstimateBody:
        """What a spec would take; ``images`` of an epoch, where the server cannot count them."""
        body = {"spec": _plain(spec), "images": images}
        answer = self._api.ask("POST", "/v1/estimates", json=body, safe=True)
        return EstimateBody.model_validate_json(answer.content)

    def hindsight(self, job_id: str) -> HindsightBody:
        """A job's estimate beside what it took."""
        answer = self._api.get(f"/v1/jobs/{job_id}/estimate")
        return HindsightBody.model_validate_json(answer.content)

    def metrics(self, job_id: str, *, run: str | None = None) -> MetricListBody:
        """The last value of every metric: of a run, of a study's cell, or of the study itself."""
        answer = self._api.get(f"/v1/jobs/{job_id}/metrics", {"run": run})
        return MetricListBody.model_validate_json(answer.content)

    def series(
        self, job_id: str, names: Sequence[str], *, run: str | None = None, points: int = 500
    ) -> SeriesListBody:
        """Metrics by step, thinned to at most ``points`` each."""
        params = {"name": list(names), "run": run, "points": points}
        answer = self._api.get(f"/v1/jobs/{job_id}/metrics", params)
        return SeriesListBody.model_validate_json(answer.content)

    def artifacts(self, job_id: str) -> Sequence[ArtifactBody]:
        """The job's files that are meant for people."""
        answer = self._api.get(f"/v1/jobs/{job_id}/artifacts")
        return ArtifactListBody.model_validate_json(answer.content).items

    def download(self, job_id: str, path: str, to: Path) -> Path:
        """Fetch an artifact into the file (or folder) ``to``; taken up where it broke.

        The file's own path comes back.
        """
        target = to / path.rpartition("/")[2] if to.is_dir() else to
        file = Download(self._api, f"/v1/jobs/{job_id}/artifacts/{quote(path)}", target)
        self._api.patiently(file.attempt, lambda: file.received)
        return target

    def trials(
        self,
        job_id: str,
        *,
        states: Sequence[str] = (),
        arms: Sequence[str] = (),
        seeds: Sequence[int] = (),
        point: Sequence[str] = (),
        least: Sequence[str] = (),
        most: Sequence[str] = (),
        sort: str = "index",
    ) -> TrialListBody:
        """The cells of a study: ``point`` holds words as `field:value`, bounds `metric:value`."""
        params = _trial_params(states, arms, seeds, point, least, most, sort)
        answer = self._api.get(f"/v1/jobs/{job_id}/trials", params)
        return TrialListBody.model_validate_json(answer.content)

    def trial_table(
        self,
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
    ) -> bytes:
        """The cells as a file."""
        params = _trial_params(states, arms, seeds, point, least, most, sort)
        params["format"] = format
        return self._api.get(f"/v1/jobs/{job_id}/trials", params).content

    def comparison(self, job_id: str) -> dict[str, Any]:
        """A comparison's result; ApiError 404 while there is none."""
        result: dict[str, Any] = self._api.get(f"/v1/jobs/{job_id}/comparison").json()
        return result

    def surface(self, job_id: str) -> dict[str, Any]:
        """A sweep's response surface; ApiError 404 while there is none."""
        found: dict[str, Any] = self._api.get(f"/v1/jobs/{job_id}/surface").json()
        return found

    def report(
        self, job_id: str, format: str, *, of: Literal["comparison", "surface"] = "comparison"
    ) -> bytes:
        """The report as a file: html, png, json, of a comparison also md and tex."""
        return self._api.get(f"/v1/jobs/{job_id}/{of}", {"format": format}).content

    def wait(
        self,
        job_id: str,
        timeout: float | None = None,
        *,
        poll_s: float = 0.5,
        seen: Callable[[JobBody], None] | None = None,
    ) -> JobBody:
        """The job once it has ended; TimeoutError after ``timeout`` seconds.

        ``seen`` is told the job at every look. A server that is away is waited for.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        heard = time.monotonic()
        while True:
            try:
                job = self.get(job_id)
                heard = time.monotonic()
            except Unreachable:
                if time.monotonic() - heard > PATIENCE_S:
                    raise
            else:
                if seen is not None:
                    seen(job)
                if job.status.state in TERMINAL:
                    return job
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError(f"{job_id} has not ended within {timeout} s")
            time.sleep(poll_s)

    def me(self) -> MeBody:
        """Whom the token speaks for."""
        return MeBody.model_validate_json(self._api.get("/v1/me").content)

    def cluster(self) -> ClusterBody:
        """Capacity, reservations, and whether the cluster answers."""
        return ClusterBody.model_validate_json(self._api.get("/v1/cluster").content)

    def schema(self, kind: str) -> dict[str, Any]:
        """The JSON schema of a kind of spec."""
        result: dict[str, Any] = self._api.get(f"/v1/schema/{kind}").json()
        return result

    def tokens(self) -> Sequence[TokenBody]:
        """The project's tokens (for administrators)."""
        return TokenListBody.model_validate_json(self._api.get("/v1/tokens").content).items

    def create_token(
        self,
        name: str,
        *,
        owner: str,
        role: Role,
        expires_in_days: float | None = None,
        scopes: Sequence[Scope] | None = None,
    ) -> FreshTokenBody:
        """A new token with its secret, shown this once (for administrators)."""
        body = {"name": name, "owner": owner, "role": role, "expires_in_days": expires_in_days,
                "scopes": None if scopes is None else list(scopes)}  # fmt: skip
        answer = self._api.ask("POST", "/v1/tokens", json=body)
        return FreshTokenBody.model_validate_json(answer.content)

    def rotate_token(self, token_id: str) -> FreshTokenBody:
        """A new secret for a token, shown this once; the old one ends (for administrators)."""
        answer = self._api.ask("POST", f"/v1/tokens/{token_id}/rotate")
        return FreshTokenBody.model_validate_json(answer.content)

    def revoke_token(self, token_id: str) -> None:
        """End a token (for administrators)."""
        self._api.ask("DELETE", f"/v1/tokens/{token_id}", safe=True)

    def _act(
        self, job_id: str, verb: str, headers: Mapping[str, str] | None = None, safe: bool = False
    ) -> JobBody:
        answer = self._api.ask("POST", f"/v1/jobs/{job_id}/{verb}", headers=headers, safe=safe)
        return JobBody.model_validate_json(answer.content)


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


def _submit_body(
    spec: AnySpecData, labels: Mapping[str, str] | None, priority: int
) -> dict[str, Any]:
    return {"spec": _plain(spec), "labels": dict(labels or {}), "priority": priority}


def _plain(spec: AnySpecData) -> dict[str, Any]:
    return spec.plain() if isinstance(spec, Spec) else dict(spec)
