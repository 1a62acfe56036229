"""The API in a process of its own, so that its memory can be watched, with one job and its log."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from stoplab_platform.ids import new_job_id
from stoplab_platform.jobs.models import Job, NewJob, Role
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.paths import JobFolder
from stoplab_platform.settings import Settings
from support_api import eventually

SECRET = "stl_" + "x" * 40


@dataclass(frozen=True)
class ApiProcess:
    """A running server and what lies behind it."""

    port: int
    process: psutil.Process
    store: JobStore
    settings: Settings

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def running_job(self) -> Job:
        new = NewJob(new_job_id(), "pretrain", "big", "default", "ana", {}, "digest")
        job = self.store.submit(new).job
        for state in (State.STARTING, State.RUNNING):
            job = self.store.move(job, state, actor="test")
        return job

    def folder(self, job: Job) -> JobFolder:
        return self.settings.folders.job(job.id)


@contextmanager
def api_process(home: Path) -> Iterator[ApiProcess]:
    """`python -m stoplab_api.app` on a free port; no reconciler of its touches the jobs."""
    settings = Settings(home=home)
    store = JobStore(settings.database)
    store.migrate()
    store.create_token("ana", owner="ana", project="default", role=Role.ADMIN, secret=SECRET)
    log = home / "server.log"
    # A reconciler would find that nobody runs the job.
    env = {**os.environ, "STOPLAB_HOME": str(home), "STOPLAB_RECONCILE_PERIOD_S": "3600"}
    with log.open("wb") as out:
        command = [sys.executable, "-m", "stoplab_api.app", "--port", "0"]
        process = subprocess.Popen(command, env=env, stdout=out, stderr=out)
    try:
        yield ApiProcess(_port(log, process), psutil.Process(process.pid), store, settings)
    finally:
        process.terminate()
        process.wait(20)
        store.close()


def _port(log: Path, process: subprocess.Popen[bytes]) -> int:
    def told() -> int | None:
        assert process.poll() is None, log.read_text()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())
        return int(found[1]) if found else None

    return int(eventually(told, 60))


@dataclass
class Watched:
    """The most memory (bytes) that a process had while the block ran, beyond that at its start."""

    process: psutil.Process
    growth: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._first = self.process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.growth = max(self.growth, self.process.memory_info().rss - self._first)
