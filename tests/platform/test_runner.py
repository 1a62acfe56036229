"""The runner's contract: one class, the local runner and Ray's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from stoplab_platform.errors import RunnerUnavailable
from stoplab_platform.runner.base import Launch, Runner, RunnerState
from stoplab_platform.runner.local import LocalRunner
from stoplab_platform.runner.ray_jobs import RayJobsRunner
from support_mlflow import free_port
from support_ray import RayHead, ray_head
from support_store import wait_for

HANG = "import time, pathlib, sys; pathlib.Path(sys.argv[1]).touch(); time.sleep(600)"
STUBBORN = (
    "import signal, time, pathlib, sys, os; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
)


def launch(code: str, *words: object, **env: str) -> Launch:
    command = [sys.executable, "-c", code, *map(str, words)]
    return Launch(f"stoplab-{uuid4().hex[:8]}", command, {"STOPLAB_TEST": "1", **env})


def over(runner: Runner, submission_id: str) -> RunnerState:
    """The state at the end."""
    wait_for(lambda: runner.observe(submission_id).state.over, "the end", 60)
    return runner.observe(submission_id).state


class RunnerContract:
    """What every runner keeps; `runner` is the subclass's fixture."""

    def test_runs_to_success(self, runner: Runner, tmp_path: Path) -> None:
        code = (
            "import os, sys, pathlib;"
            "pathlib.Path(sys.argv[1]).write_text(sys.argv[2] + os.environ['EXTRA'])"
        )
        job = launch(code, tmp_path / "out", "two words; $HOME ' \"", EXTRA="!")
        assert runner.observe(job.submission_id).state is RunnerState.ABSENT
        runner.start(job)
        assert over(runner, job.submission_id) is RunnerState.SUCCEEDED
        assert (tmp_path / "out").read_text() == "two words; $HOME ' \"!"

    def test_tells_of_failure(self, runner: Runner) -> None:
        job = launch("raise SystemExit(3)")
        runner.start(job)
        assert over(runner, job.submission_id) is RunnerState.FAILED
        assert "3" in str(runner.observe(job.submission_id).message)

    def test_a_second_start_is_the_first(self, runner: Runner, tmp_path: Path) -> None:
        code = "import sys; open(sys.argv[1], 'a').write('x')"
        job = launch(code, tmp_path / "out")
        runner.start(job)
        runner.start(job)
        over(runner, job.submission_id)
        runner.start(job)
        assert over(runner, job.submission_id) is RunnerState.SUCCEEDED
        assert (tmp_path / "out").read_text() == "x"

    def test_stop(self, runner: Runner, tmp_path: Path) -> None:
        job = launch(HANG, tmp_path / "up")
        runner.start(job)
        wait_for((tmp_path / "up").exists, "the process", 60)
        assert runner.observe(job.submission_id).state is RunnerState.RUNNING
        runner.stop(job.submission_id)
        assert over(runner, job.submission_id) is RunnerState.STOPPED
        runner.stop(job.submission_id)

    def test_stop_kills_who_will_not_go(self, runner: Runner, tmp_path: Path) -> None:
        note = tmp_path / "pid"
        below = f"[sys.executable, '-c', {STUBBORN!r}, *sys.argv[1:]]"
        job = launch(f"import subprocess, sys; subprocess.run({below})", note)
        runner.start(job)
        pid = int(wait_for(lambda: note.exists() and note.read_text(), "it", 60))
        runner.stop(job.submission_id)
        wait_for(lambda: not psutil.pid_exists(pid), "the grandchild's end", 15)
        assert over(runner, job.submission_id).over

    def test_forgets_what_is_over(self, runner: Runner, tmp_path: Path) -> None:
        job = launch(HANG, tmp_path / "up")
        runner.start(job)
        wait_for((tmp_path / "up").exists, "the process", 60)
        with pytest.raises(RunnerUnavailable):
            runner.forget(job.submission_id)
        assert runner.observe(job.submission_id).state is RunnerState.RUNNING
        runner.stop(job.submission_id)
        over(runner, job.submission_id)
        for _ in range(2):
            runner.forget(job.submission_id)
            assert runner.observe(job.submission_id).state is RunnerState.ABSENT

    def test_stop_of_the_unknown(self, runner: Runner) -> None:
        runner.stop("stoplab-unknown")

    def test_alive(self, runner: Runner) -> None:
        assert runner.alive()


class TestLocalRunner(RunnerContract):
    @pytest.fixture
    def runner(self, tmp_path: Path) -> Runner:
        return LocalRunner(tmp_path / "runner")

    def test_a_new_api_adopts_what_lives(self, tmp_path: Path) -> None:
        folder, up = tmp_path / "runner", tmp_path / "up"
        job = launch(HANG, up)
        start = (
            "import json, sys; from pathlib import Path;"
            "from stoplab_platform.runner.base import Launch;"
            "from stoplab_platform.runner.local import LocalRunner;"
            "LocalRunner(Path(sys.argv[1])).start(Launch(sys.argv[2], json.loads(sys.argv[3])))"
        )
        words = [str(folder), job.submission_id, json.dumps(list(job.entrypoint))]
        subprocess.run([sys.executable, "-c", start, *words], check=True)
        wait_for(up.exists, "the process")
        runner = LocalRunner(folder)
        assert runner.observe(job.submission_id).state is RunnerState.RUNNING
        runner.start(job)
        runner.stop(job.submission_id)
        assert over(runner, job.submission_id) is RunnerState.STOPPED

    def test_nothing_is_left_of_the_forgotten(self, tmp_path: Path) -> None:
        runner = LocalRunner(tmp_path / "runner")
        job = launch("print('all that it said')")
        runner.start(job)
        over(runner, job.submission_id)
        runner.forget(job.submission_id)
        assert list((tmp_path / "runner").iterdir()) == []

    def test_anothers_pid_is_not_ours(self, tmp_path: Path) -> None:
        runner = LocalRunner(tmp_path)
        (tmp_path / "old.json").write_text(json.dumps({"pid": os.getpid(), "created": 1.0}))
        assert runner.observe("old").state is RunnerState.FAILED
        runner.stop("old")

    def test_the_unstartable(self, tmp_path: Path) -> None:
        runner = LocalRunner(tmp_path)
        with pytest.raises(RunnerUnavailable):
            runner.start(Launch("none", ["/no/such/program"]))
        assert runner.observe("none").state is RunnerState.ABSENT


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head() as head:
        yield head


@pytest.mark.ray
class TestRayJobsRunner(RunnerContract):
    @pytest.fixture
    def runner(self, head: RayHead) -> Iterator[Runner]:
        runner = RayJobsRunner(head.dashboard, head.token_path)
        yield runner
        runner.close()

    def test_the_token_is_needed(self, head: RayHead) -> None:
        runner = RayJobsRunner(head.dashboard)
        assert not runner.alive()
        with pytest.raises(RunnerUnavailable, match="401"):
            runner.start(launch("pass"))
        runner.close()


class TestRayAway:
    def test_nobody_listens(self) -> None:
        runner = RayJobsRunner(f"http://127.0.0.1:{free_port()}")
        assert not runner.alive()
        for ask in (runner.observe, runner.stop):
            with pytest.raises(RunnerUnavailable, match="does not answer"):
                ask("x")
        runner.close()

    def test_the_token_is_gone(self, tmp_path: Path) -> None:
        runner = RayJobsRunner(f"http://127.0.0.1:{free_port()}", tmp_path / "token")
        with pytest.raises(RunnerUnavailable, match="token"):
            runner.observe("x")
        runner.close()
