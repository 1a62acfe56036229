"""A job as REST, the command line and the page show it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stoplab_platform.admission import QueueInfo
from stoplab_platform.files import read_json
from stoplab_platform.jobs.models import Event, Job
from stoplab_platform.jobs.states import STUDIES, ReasonCode, State, allowed_actions
from stoplab_platform.paths import JobFolder
from stoplab_platform.redaction import without_credentials
from stoplab_platform.settings import Settings


def job_view(
    job: Job, history: Sequence[Event], queue: QueueInfo | None, settings: Settings
) -> dict[str, Any]:
    """The JSON of one job; ``history`` holds its state changes, oldest first."""
    folder = settings.folders.job(job.id)
    return {
        "id": job.id,
        "kind": job.kind,
        "name": job.name,
        "project": job.project,
        "owner": job.owner,
        "labels": dict(job.labels),
        "priority": job.priority,
        "spec": dict(job.spec),
        "spec_digest": job.spec_digest,
        "run_digest": job.run_digest,
        "retry_of": job.retry_of,
        "extends": job.extends,
        "limits": dict(job.limits),
        "version": job.version,
        "created_at": stamp(job.created_at),
        "started_at": stamp(job.started_at),
        "finished_at": stamp(job.finished_at),
        "status": _status(job, history, queue, folder),
        "links": {
            "self": f"/v1/jobs/{job.id}",
            "mlflow": _mlflow(job, folder, settings.mlflow_tracking_uri),
            "logs": f"/v1/jobs/{job.id}/logs",
        },
    }


def event_view(event: Event) -> dict[str, Any]:
    """The JSON of one line of a job's history."""
    return {
        "seq": event.seq,
        "at": stamp(event.at),
        "actor": event.actor,
        "verb": event.verb,
        "from_state": event.from_state,
        "to_state": event.to_state,
        "reason_code": event.reason_code,
        "message": event.message,
    }


def stamp(at: datetime | None) -> str | None:
    """A time in ISO 8601, UTC, milliseconds, ending in Z."""
    if at is None:
        return None
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _status(
    job: Job, history: Sequence[Event], queue: QueueInfo | None, folder: JobFolder
) -> dict[str, Any]:
    waits = job.state is State.QUEUED and queue is not None
    return {
        "state": job.state.value,
        "reason_code": _plain(job.reason_code),
        "message": job.message,
        "attempt": job.attempt,
        "progress": _file(folder.progress if job.kind in STUDIES else folder.run("run").progress),
        "queue": {"position": queue.position, "reason": queue.reason} if waits and queue else None,
        "allowed_actions": list(allowed_actions(job.state, job.kind)),
        "history": [
            {
                "state": str(event.to_state),
                "at": stamp(event.at),
                "reason_code": _plain(event.reason_code),
            }
            for event in history
        ],
    }


def _plain(code: ReasonCode | None) -> str | None:
    return None if code is None else code.value


def _mlflow(job: Job, folder: JobFolder, uri: str | None) -> str | None:
    """Page of the job's run (a study's parent run) in MLflow, once both are known."""
    if uri is None or not uri.startswith(("http://", "https://")):
        return None
    found = _file(folder.tracked if job.kind in STUDIES else folder.run("run").spool_sent) or {}
    run, experiment = found.get("run_id"), found.get("experiment_id")
    if not run:
        return None
    middle = f"experiments/{experiment}/" if experiment else ""
    return f"{without_credentials(uri).rstrip('/')}/#/{middle}runs/{run}"


def _file(path: Path) -> dict[str, Any] | None:
    """A small file that a run replaces as it goes; None where it is missing or unreadable."""
    with suppress(OSError, ValueError):
        data = read_json(path)
        return data if isinstance(data, dict) else None
    return None
