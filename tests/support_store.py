"""Stores and jobs for tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stoplab_platform.ids import new_job_id
from stoplab_platform.jobs.models import Job, NewJob, Principal, Role
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.settings import Settings
from stoplab_platform.specs import AnySpec, parse_spec

ANA = Principal("ana", "default", Role.SUBMITTER)
BEN = Principal("ben", "default", Role.SUBMITTER)
ADMIN = Principal("root", "default", Role.ADMIN)
VIEWER = Principal("eve", "default", Role.VIEWER)
STRANGER = Principal("zoe", "elsewhere", Role.ADMIN)


@contextmanager
def open_store(url: str) -> Iterator[JobStore]:
    """A migrated store."""
    store = JobStore(url)
    store.migrate()
    try:
        yield store
    finally:
        store.close()


def run_spec(name: str = "bar", **changes: Any) -> AnySpec:
    """A small pretraining spec; ``changes`` are top-level fields."""
    tiny = {
        "kind": "pretrain",
        "name": name,
        "model": {"encoder": "vit_tiny_patch16_224"},
        "data": {"train": "digits"},
    }
    return parse_spec({**tiny, **changes})


def compare_spec(name: str = "pair", seeds: tuple[int, ...] = (0, 1), **changes: Any) -> AnySpec:
    """A comparison of two arms."""
    arms = {"deterministic": {"positions.kind": "deterministic"}, "stochastic": {}}
    base = run_spec("base").plain()
    pair = {"kind": "compare", "name": name, "base": base, "arms": arms, "seeds": list(seeds)}
    return parse_spec({**pair, **changes})


def evaluation(job_id: str) -> AnySpec:
    """An evaluation of a job's weights."""
    return parse_spec(
        {
            "kind": "evaluate",
            "name": "probe",
            "checkpoint": {"job": job_id},
            "data": {"train": "digits/train", "test": "digits/test", "image_size": 16},
        }
    )


def new_job(of: AnySpec | None = None, **changes: Any) -> NewJob:
    """A job as the service makes it."""
    spec = of or run_spec()
    fields: dict[str, Any] = {
        "id": new_job_id(),
        "kind": spec.kind,
        "name": spec.name,
        "project": "default",
        "owner": "ana",
        "spec": spec.plain(),
        "spec_digest": spec.digest(),
    }
    return NewJob(**{**fields, **changes})


def running(store: JobStore, job: Job) -> Job:
    """The job, started."""
    job = store.move(job, State.STARTING, actor="x", attempt=1)
    return store.move(job, State.RUNNING, actor="x")


def finished(store: JobStore, job: Job, end: State = State.FAILED) -> Job:
    """The job, at its end."""
    return store.move(running(store, job), end, actor="x")


def lab_settings(home: Path, tracking_uri: str | None = None, **changes: Any) -> Settings:
    """Settings of a lab in ``home`` that looks often; nothing comes from the environment."""
    outside = {"MLFLOW_TRACKING_URI": tracking_uri, "RAY_ADDRESS": None}
    return Settings(home=home, **{"reconcile_period_s": 0.05, **outside, **changes})


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    """What ``condition`` gives once it is true; AssertionError after the deadline."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.02)
    return value
