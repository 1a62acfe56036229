"""Each promise of docs/jobs.md with its mechanism taken out: the check must then fail."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import update

from stoplab_platform import settle
from stoplab_platform.errors import Stopped, TrackerUnavailable
from stoplab_platform.fence import own
from stoplab_platform.handoff import GRACE_S, read_heartbeat
from stoplab_platform.jobs import store as job_store
from stoplab_platform.jobs.models import IdempotencyRecord, Intent, Job
from stoplab_platform.jobs.states import MOVES, State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.jobs.tables import JobRow
from stoplab_platform.paths import JobFolder, RunFolder, write_json
from stoplab_platform.tracking import SpoolTracker, client, drain, spool
from stoplab_platform.tracking.mlflow_runs import Runs
from stoplab_platform.tracking.sender import Sender
from stoplab_trainers import checkpoint
from stoplab_trainers.launch import execute
from support_invariants import (
    frees,
    goes_on,
    has_logged,
    is_told,
    is_whole,
    keeps_its_spec,
    kept,
    leaves,
    one_job,
    one_start,
    stays,
)
from support_jobs import DEAF, gone, running_lab, trainer
from support_mlflow import IDENTITY
from support_postgres import running_postgres
from support_runs import folder as run_folder
from support_runs import identity, tiny
from support_store import ADMIN, new_job, open_store, wait_for

pytestmark = pytest.mark.slow

HOLDS = pytest.param(False, id="holds")
TAKEN_OUT = pytest.param(True, id="taken-out")
both_ways = pytest.mark.parametrize("out", [HOLDS, TAKEN_OUT])
"""Each test runs with the mechanism, and without it."""

COUNTING = (
    "import os, sys, time; print('pid', os.getpid(), flush=True)\n"
    "while True: time.sleep(0.05); print('step', flush=True)"
)


@contextmanager
def fails(out: bool) -> Iterator[None]:
    """The block is the check: it must fail where the mechanism is taken out, and only there."""
    if out:
        with pytest.raises(AssertionError) as caught:
            yield
        print("without it:", str(caught.value).partition("\n")[0])
    else:
        yield


@pytest.fixture
def folder(home: Path) -> JobFolder:
    return JobFolder(home / "jobs" / "j_1")


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """What a test starts, and leaves to be ended."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def supervise(code: str, patch: str = "") -> subprocess.Popen[bytes]:
    """A supervisor of attempt 1 that runs ``code``; ``patch`` is done to it first."""
    start = f"import sys; from stoplab_platform import child, contact, supervisor\n{patch}\n"
    words = ["-c", f"{start}sys.exit(supervisor.main())", "--job", "j_1", "--attempt", "1"]
    command = [sys.executable, *words, "--", sys.executable, "-c", code]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


class TestAcknowledgedIsKept:
    """I1: the transaction is on the disk before 202 is answered."""

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
    def test_two_starts(
        self, folder: JobFolder, out: bool, started: list[subprocess.Popen[bytes]]
    ) -> None:
        patch = "supervisor.claim_attempt = lambda *_: None" if out else ""
        code = "import os; print('pid', os.getpid(), flush=True)"
        started += [supervise(code, patch) for _ in range(3)]
        for process in started:
            process.wait(60)
        with fails(out):
            one_start(folder)

    @both_ways
    def test_a_newer_attempt(
        self, folder: JobFolder, out: bool, started: list[subprocess.Popen[bytes]]
    ) -> None:
        started.append(supervise(COUNTING, "contact.owner = lambda _: 1" if out else ""))
        wait_for(lambda: read_heartbeat(folder), "a heartbeat")
        own(folder, 2)
        with fails(out):
            leaves(started[0], 3 if out else 20)


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


class TestKillCostsOneInterval:
    """I4: an attempt goes on from the newest checkpoint."""

    EVERY = 20

    @both_ways
    def test_kill_9_of_a_training(self, tmp_path: Path, home: Path, out: bool) -> None:
        spec = tiny(
            evals=[],
            optim__epochs=200,
            checkpoint__every_epochs=None,
            checkpoint__every_steps=self.EVERY,
        )
        path = tmp_path / "spec.yaml"
        path.write_text(spec.to_yaml())
        run = RunFolder(home / "jobs" / "j_1" / "runs" / "run")
        with self.training(path):
            wait_for(lambda: has_logged(run) > 2 * self.EVERY, "some steps", 120)
        killed_at, lines = has_logged(run), run.rank_log(0).read_text().count("  epoch ")
        with self.training(path, "checkpoint.latest = lambda _: None" if out else ""):
            wait_for(lambda: run.rank_log(0).read_text().count("  epoch ") > lines, "a step", 120)
        print(f"killed at step {killed_at}, with a checkpoint every {self.EVERY}")
        with fails(out):
            goes_on(run, killed_at, self.EVERY)

    @contextmanager
    def training(self, spec: Path, patch: str = "") -> Iterator[None]:
        """A run of its own, until kill -9 at the end of the block."""
        start = "import sys; from stoplab_trainers import checkpoint, main\n"
        words = [sys.executable, "-c", f"{start}{patch}\nsys.exit(main.main())", str(spec)]
        env = {**os.environ, "STOPLAB_JOB_ID": "j_1"}
        process = subprocess.Popen(
            words, env=env, stdout=subprocess.DEVNULL, start_new_session=True
        )
        try:
            yield
            assert process.poll() is None, "it ended before it could be killed"
        finally:
            process.kill()
            process.wait()


class TestWordsAreKept:
    """I5: bytes go to the file as they come."""

    @both_ways
    def test_of_a_driver(
        self, folder: JobFolder, out: bool, started: list[subprocess.Popen[bytes]]
    ) -> None:
        hold = "held = []; child._write = lambda place, data: held.append(data)"
        code = "import os, time; os.write(1, b'last words'); open('said', 'w'); time.sleep(600)"
        folder.root.mkdir(parents=True)
        code = f"import os; os.chdir({str(folder.root)!r}); {code}"
        started.append(supervise(code, hold if out else ""))
        wait_for((folder.root / "said").exists, "the last words")
        wait_for(lambda: read_heartbeat(folder), "a heartbeat")
        started[0].kill()
        started[0].wait()
        with fails(out):
            assert "last words" in folder.driver_log.read_text()

    @both_ways
    def test_of_a_rank(self, tmp_path: Path, out: bool) -> None:
        run = run_folder(tmp_path)
        hold = "logging.StreamHandler.flush = lambda _: None" if out else ""
        code = (
            "import logging, os, pathlib, sys; from stoplab_trainers.launch import rank_log\n"
            f"from stoplab_platform.paths import RunFolder\n{hold}\n"
            "with rank_log(RunFolder(pathlib.Path(sys.argv[1])), 3):\n"
            "    logging.getLogger('stoplab.train').info('last words')\n"
            "    os.kill(os.getpid(), 9)"
        )
        done = subprocess.run([sys.executable, "-c", code, run.root], check=False)
        assert done.returncode == -signal.SIGKILL
        with fails(out):
            assert "last words" in run.rank_log(3).read_text()


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


class TestNothingLoggedIsLostOrDoubled:
    """I7: the spool is sent in order and as a whole; a resumed run repeats no point in it."""

    @both_ways
    def test_mlflow_is_away(
        self, tmp_path: Path, mlflow_uri: str, out: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = run_folder(tmp_path)
        send, apply = Sender._send, Runs.apply
        away = True

        def careless(self: Sender, *batch: Any) -> None:
            """Takes what could not be sent for sent."""
            try:
                send(self, *batch)
            except TrackerUnavailable:
                return

        def absent(self: Runs, *lines: Any) -> None:
            if away:
                raise TrackerUnavailable("away")
            apply(self, *lines)

        monkeypatch.setattr(Runs, "apply", absent)
        if out:
            monkeypatch.setattr(Sender, "_send", careless)
        tracker = SpoolTracker(run, None)
        tracker.start(IDENTITY, {})
        tracker.metrics(0, {"train/loss": 0.0})
        assert drain(run, mlflow_uri, 0) is out
        away = False
        tracker.metrics(1, {"train/loss": 1.0})
        tracker.close()
        assert drain(run, mlflow_uri, 30)
        with fails(out):
            is_whole(client(mlflow_uri), str(tracker.run_id), run)

    @both_ways
    def test_a_resumed_run_repeats_steps(
        self, tmp_path: Path, mlflow_uri: str, out: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = run_folder(tmp_path)

        def log(steps: Iterable[int]) -> str:
            """One process of the run; the id of its run in MLflow."""
            tracker = SpoolTracker(run, None)
            tracker.start(IDENTITY, {})
            for step in steps:
                tracker.metrics(step, {"train/loss": float(step)})
            tracker.close()
            assert drain(run, mlflow_uri, 30)
            return str(tracker.run_id)

        log(range(10))
        if out:  # it knows that the run has begun, and not what was logged
            monkeypatch.setattr(spool, "_what_is_there", lambda _: (True, {}))
        run_id = log(range(5, 20))  # the checkpoint was made after step 4
        with fails(out):
            is_whole(client(mlflow_uri), run_id, run)


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


class TestResumedWeights:
    """I9: a checkpoint holds all that the next step depends on."""

    @both_ways
    def test_of_a_stopped_run(
        self, tmp_path: Path, out: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec, stop, run = tiny(evals=[]), tmp_path / "stop.json", run_folder(tmp_path, "stopped")
        whole = execute(spec, run_folder(tmp_path, "whole"), identity())

        def ask(_: Mapping[str, Any]) -> None:
            write_json(stop, {"intent": "PAUSED", "deadline_s": 60})

        with pytest.raises(Stopped):
            execute(spec, run, identity(), stop_file=stop, on_progress=ask)
        stop.unlink()
        load = checkpoint.load

        def partly(path: Path, **words: Any) -> tuple[int, dict[str, Any]]:
            """All but the optimizer's moments."""
            step, state = load(path, **words)
            return step, state | {"optimizer": {**state["optimizer"], "state": {}}}

        if out:
            monkeypatch.setattr(checkpoint, "load", partly)
        resumed = execute(spec, run, identity(), stop_file=stop)
        with fails(out):
            assert resumed.weights_sha256 == whole.weights_sha256
