"""Each promise of docs/jobs.md with its mechanism taken out: the check must then fail.

Those about runs are in `test_mechanisms_of_runs.py`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import update

from stoplab_platform import settle
from stoplab_platform.fence import own
from stoplab_platform.handoff import GRACE_S, read_heartbeat
from stoplab_platform.jobs import store as job_store
from stoplab_platform.jobs.models import IdempotencyRecord, Intent, Job
from stoplab_platform.jobs.states import MOVES, State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.jobs.tables import JobRow
from stoplab_platform.paths import JobFolder
from stoplab_platform.tracking import client
from support_invariants import (
    frees,
    is_told,
    keeps_its_spec,
    kept,
    leaves,
    one_job,
    one_start,
    stays,
)
from support_jobs import DEAF, gone, running_lab, trainer
from support_mechanisms import both_ways, fails, supervised
from support_postgres import running_postgres
from support_store import ADMIN, new_job, open_store, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(home: Path) -> JobFolder:
    return JobFolder(home / "jobs" / "j_1")


DIES = """
import os, sys
from stoplab_platform.jobs.database import Database
from stoplab_platform.jobs.store import JobStore
from support_store import new_job
{patch}
print(JobStore(sys.argv[1]).submit(new_job()).job.id, flush=True)
os.kill(os.getpid(), 9)
"""
LATER = """
from contextlib import contextmanager
from sqlalchemy.orm import Session
sessions = []
@contextmanager
def writing(self):
    sessions.append(Session(self._writer))
    sessions[-1].begin()
    yield sessions[-1]
    sessions[-1].flush()
Database.writing = writing
"""
"""Transactions are left for somebody to commit when there is time."""


class TestAcknowledgedIsKept:
    """I1: the transaction is committed, and on the disk, before 202 is answered."""

    @both_ways
    def test_kill_9_of_the_api(self, store: JobStore, url: str, out: bool) -> None:
        code = DIES.format(patch=LATER if out else "")
        tests = Path(__file__).parents[1]
        words = [sys.executable, "-c", code, url]
        done = subprocess.run(words, cwd=tests, stdout=subprocess.PIPE, text=True, check=False)
        assert done.returncode == -signal.SIGKILL
        with fails(out):
            kept(store, done.stdout.split())

    @both_ways
    def test_a_crash_of_the_database(self, out: bool) -> None:
        with running_postgres() as server, server.database() as url:
            if out:
                server.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
                server.execute("ALTER SYSTEM SET synchronous_commit = off")
                server.execute("SELECT pg_reload_conf()")
            with open_store(url) as store:
                server.execute("CHECKPOINT")
                acknowledged = [store.submit(new_job()).job.id for _ in range(20)]
                server.stop(signal.SIGQUIT)
                server.start()
                with fails(out):
                    kept(store, acknowledged)


class TestOneJobAKey:
    """I2: the key's record is written in the job's transaction."""

    @both_ways
    def test_many_submits_under_one(
        self, store: JobStore, out: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = job_store.key_row
        if out:  # it is written under a name that nobody asks for
            monkeypatch.setattr(
                job_store, "key_row", lambda new, key: write(new, replace(key, key=uuid4().hex))
            )
        key = IdempotencyRecord("key", "digest")
        with ThreadPoolExecutor(8) as pool:
            submits = [pool.submit(store.submit, new_job(), idempotency=key) for _ in range(16)]
            done = [submit.result() for submit in submits]
        with fails(out):
            one_job(done)


class TestOneAttempt:
    """I2: the fence."""

    @both_ways
    def test_two_starts(self, folder: JobFolder, out: bool) -> None:
        patch = "supervisor.claim_attempt = lambda *_: None" if out else ""
        code = "import os; print('pid', os.getpid(), flush=True)"
        with ExitStack() as stack:
            for process in [stack.enter_context(supervised(code, patch)) for _ in range(3)]:
                process.wait(60)
        with fails(out):
            one_start(folder)

    @both_ways
    def test_a_newer_attempt(self, folder: JobFolder, out: bool) -> None:
        code = "import time; time.sleep(600)"
        with supervised(code, "contact.owner = lambda _: 1" if out else "") as process:
            wait_for(lambda: read_heartbeat(folder), "a heartbeat")
            own(folder, 2)
            with fails(out):
                leaves(process, 3 if out else 20)


class TestEndsAreFinal:
    """I3: the table of moves, updates that are guarded by the version, no column for a spec."""

    @pytest.mark.parametrize("out", [None, "table", "version"])
    def test_no_way_out(
        self, store: JobStore, out: str | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = store.submit(new_job()).job
        running = store.move(job, State.STARTING, actor="x", attempt=1)
        ended = store.move(running, State.SUCCEEDED, actor="x")
        if out == "table":
            monkeypatch.setitem(MOVES, State.SUCCEEDED, frozenset(State))
        elif out == "version":
            monkeypatch.setattr(job_store, "_guarded_update", unguarded)
        with fails(out is not None):
            stays(store, ended, running)

    @both_ways
    def test_specs(self, store: JobStore, out: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        if out:
            monkeypatch.setattr(job_store, "MOVABLE", job_store.MOVABLE | {"spec"})
        with fails(out):
            keeps_its_spec(store, store.submit(new_job()).job)


def unguarded(session: Any, job: Job, values: Mapping[str, Any]) -> None:
    """An update that does not ask for the version."""
    session.execute(update(JobRow).where(JobRow.id == job.id).values(**values))


class TestMlflowAgrees:
    """I6: what a killed run left open in MLflow is closed when its job ends."""

    @both_ways
    def test_a_run_that_was_left_open(
        self, home: Path, mlflow_uri: str, out: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if out:
            monkeypatch.setattr(settle.Settler, "settle", lambda *_: None)
        mlflow = client(mlflow_uri)
        with running_lab(home, trainer(9999), tracking_uri=mlflow_uri) as lab:
            job = lab.submit()
            tags = {"stoplab.job_id": job.id}
            run = mlflow.create_run(mlflow.create_experiment("e"), tags=tags)
            lab.wait(job, State.RUNNING)
            lab.jobs.cancel(ADMIN, job.id)
            lab.wait(job, State.CANCELLED)
            with fails(out):
                is_told(mlflow, run.info.run_id, "KILLED", 5 if out else 60)


class TestStopsAreQuick:
    """I8: a stop has a deadline, after which the deaf are killed."""

    @pytest.mark.parametrize(
        ("intent", "within_s"), [(Intent.CANCELLED, 15.0), (Intent.PAUSED, 70.0)]
    )
    def test_without_a_deadline(
        self, home: Path, intent: Intent, within_s: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With it: `platform/test_life_edges.py` and `platform/test_reconciler.py`."""
        monkeypatch.setattr(settle.tracking, "finish_runs", lambda *_: 0)
        monkeypatch.setitem(GRACE_S, intent, 1000.0)
        with running_lab(home, DEAF) as lab:
            job = lab.submit()
            pid = lab.pid(job)
            lab.wait(job, State.RUNNING)
            ask = lab.jobs.cancel if intent is Intent.CANCELLED else lab.jobs.pause
            ask(ADMIN, job.id)
            to = State.CANCELLED if intent is Intent.CANCELLED else State.PAUSED
            with fails(out=True):
                frees(lab, job, pid, to, within_s)
            assert not gone(pid)
