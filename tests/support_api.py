"""A real server on a free port, a real SQLite store, and tokens, for tests of the API."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from stoplab_api.app import Server, create_app, serve
from stoplab_api.context import Lab
from stoplab_platform.jobs.models import Job, Role
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.paths import JobFolder
from stoplab_platform.runner.base import Launch, Observed, Runner, RunnerState
from stoplab_platform.runner.local import LocalRunner
from stoplab_platform.settings import Settings

SPEC: dict[str, Any] = {
    "kind": "pretrain",
    "name": "tiny",
    "model": {
        "encoder": "custom",
        "width": 16,
        "depth": 1,
        "heads": 2,
        "patch_size": 2,
        "predictor": {"width": 16, "depth": 1},
    },
    "masking": {"kind": "multiblock", "min_keep": 4},
    "data": {"train": "digits", "image_size": 16},
    "optim": {"epochs": 1, "batch_size": 64, "warmup_epochs": 0},
}
COMPARE: dict[str, Any] = {
    "kind": "compare",
    "name": "pair",
    "base": SPEC,
    "arms": {"deterministic": {"positions.kind": "deterministic"}, "stochastic": {}},
    "seeds": [0, 1],
}
PATHS = {
    State.STARTING: (State.STARTING,),
    State.RUNNING: (State.STARTING, State.RUNNING),
    State.SUCCEEDED: (State.STARTING, State.RUNNING, State.SUCCEEDED),
    State.FAILED: (State.STARTING, State.RUNNING, State.FAILED),
    State.PAUSED: (State.PAUSED,),
    State.CANCELLED: (State.CANCELLED,),
}


@dataclass
class Api:
    """A server under test, and what lies behind it."""

    url: str
    store: JobStore
    lab: Lab
    server: Server

    def http(self, role: str | None = "ana") -> httpx.Client:
        """A client that speaks with the token of `ana`, `bob`, `vera`, `root`, `eve`, or none."""
        headers = {"Authorization": f"Bearer {secret(role)}"} if role else {}
        return httpx.Client(
            base_url=self.url, headers=headers, timeout=20, trust_env=False, verify=False
        )

    def submitted(self, spec: dict[str, Any] | None = None, **body: Any) -> dict[str, Any]:
        """A job of ana's, still queued."""
        with self.http() as http:
            answer = http.post("/v1/jobs", json={"spec": spec or SPEC, **body})
        assert answer.status_code == 202, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def moved(self, job_id: str, state: State) -> Job:
        """The job, taken to ``state`` as the reconciler would."""
        job = self.store.get(job_id)
        for to in PATHS[state]:
            job = self.store.move(job, to, actor="test")
        return job

    def folder(self, job_id: str) -> JobFolder:
        """The job's folder."""
        return self.lab.settings.folders.job(job_id)

    def write_log(self, job_id: str, data: bytes) -> None:
        """More of the driver's log."""
        path = self.folder(job_id).driver_log
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(data)


def with_(**changes: Any) -> dict[str, Any]:
    """The spec of the tests with some of its fields changed."""
    return {**SPEC, **changes}


def secret(role: str) -> str:
    """A token's secret, known beforehand."""
    return f"stl_{role}_{'x' * 40}"


class NoRunner:
    """A cluster that went away."""

    tied_to_parent = False

    def start(self, launch: Launch) -> None:
        raise AssertionError(launch)

    def observe(self, submission_id: str) -> Observed:
        return Observed(RunnerState.ABSENT)

    def stop(self, submission_id: str) -> None:
        raise AssertionError(submission_id)

    def forget(self, submission_id: str) -> None:
        raise AssertionError(submission_id)

    def alive(self) -> bool:
        return False


@contextmanager
def running_api(
    home: Path, *, runner: Runner | None = None, reconcile: bool = False, **settings: Any
) -> Iterator[Api]:
    """A server in a thread, with five tokens; ends it (and checks that it ends)."""
    made = Settings(home=home, **settings)
    store = JobStore(made.database)
    store.migrate()
    _make_tokens(store)
    runner = runner or LocalRunner(home / "runner")
    app = create_app(made, store=store, runner=runner, reconcile=reconcile)
    server = serve(app, host="127.0.0.1", port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started or not thread.is_alive())
        assert server.started, "the server did not start"
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Api(f"http://127.0.0.1:{port}", store, app.state.lab, server)
    finally:
        server.should_exit = True
        thread.join(15)
        store.close()
        assert not thread.is_alive(), "the server did not end"


def eventually(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """The first true value of ``condition``; AssertionError when none comes."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError("the condition did not come true")


def _make_tokens(store: JobStore) -> None:
    people = (
        ("ana", "default", Role.SUBMITTER),
        ("bob", "default", Role.SUBMITTER),
        ("vera", "default", Role.VIEWER),
        ("root", "default", Role.ADMIN),
        ("eve", "elsewhere", Role.ADMIN),
    )
    for owner, project, role in people:
        store.create_token(owner, owner=owner, project=project, role=role, secret=secret(owner))
