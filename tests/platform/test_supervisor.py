"""The supervisor: real processes, killed in every way."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from stoplab_platform.errors import Fenced
from stoplab_platform.exits import Exit
from stoplab_platform.fence import claim_attempt, own, owner
from stoplab_platform.files import write_json
from stoplab_platform.handoff import (
    Result,
    clear_stop,
    read_heartbeat,
    read_result,
    read_stop,
    request_stop,
)
from stoplab_platform.jobs.models import Intent
from stoplab_platform.jobs.states import ReasonCode
from stoplab_platform.paths import JobFolder
from stoplab_platform.supervisor import entrypoint, judge
from stoplab_platform.tracking.sender import sent_run_id
from support_jobs import gone
from support_store import run_spec, wait_for

PRINT_PID = "import os, sys, time; print('pid', os.getpid(), flush=True);"
HANG = PRINT_PID + "time.sleep(600)"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);" + HANG


@pytest.fixture
def folder(home: Path) -> JobFolder:
    return JobFolder(home / "jobs" / "j_1")


class Attempts:
    """Starts supervisors, and leaves none behind."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, code: str, attempt: int = 1, *flags: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "stoplab_platform.supervisor", "--job", "j_1"]
        words += ["--attempt", str(attempt), *flags, "--", sys.executable, "-c", code]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.started.append(process)
        return process

    def run(self, code: str, attempt: int = 1, *flags: str) -> int:
        return self.start(code, attempt, *flags).wait(30)


@pytest.fixture
def attempts() -> Iterator[Attempts]:
    attempts = Attempts()
    yield attempts
    for process in attempts.started:
        process.kill()
        process.wait()


def log(folder: JobFolder) -> bytes:
    return folder.driver_log.read_bytes() if folder.driver_log.exists() else b""


def child_pid(folder: JobFolder, nth: int = 1) -> int:
    """The pid that the nth child printed."""

    def printed() -> list[bytes] | None:
        found = re.findall(rb"pid (\d+)\n", log(folder))
        return found if len(found) >= nth else None

    return int(wait_for(printed, "the child's pid")[nth - 1])


def result_of(folder: JobFolder, attempt: int = 1) -> Result:
    result = read_result(folder, attempt)
    assert result is not None
    return result


class TestEnds:
    def test_success(self, folder: JobFolder, attempts: Attempts) -> None:
        write_json(folder.run("run").summary, {"run_digest": "abc"})
        assert attempts.run("print('well')") == 0
        result = result_of(folder)
        assert (result.outcome, result.exit_code, result.reason_code) == ("SUCCEEDED", 0, None)
        assert (result.run_digest, result.message) == ("abc", None)
        assert owner(folder) == 1

    def test_an_error(self, folder: JobFolder, attempts: Attempts) -> None:
        assert attempts.run("raise ValueError('no such thing')") == 1
        result = result_of(folder)
        assert (result.outcome, result.reason_code) == ("FAILED", ReasonCode.RUN_ERROR)
        assert result.message == "ValueError: no such thing"

    def test_the_time_before_a_line_is_no_part_of_the_message(
        self, folder: JobFolder, attempts: Attempts
    ) -> None:
        assert attempts.run("print('19:50:58 2 shards do not exist'); raise SystemExit(66)") == 66
        assert "19:50" not in str(result_of(folder).message)
        assert "(2 shards do not exist)" in str(result_of(folder).message)

    def test_a_kill(self, folder: JobFolder, attempts: Attempts) -> None:
        assert attempts.run("import os; os.kill(os.getpid(), 9)") == 137
        result = result_of(folder)
        assert (result.exit_code, result.outcome) == (-9, "FAILED")
        assert result.reason_code is ReasonCode.WORKER_ERROR

    @pytest.mark.parametrize(
        ("code", "ending", "outcome", "reason"),
        [
            (0, "USER_REQUEST", "SUCCEEDED", None),
            (2, None, "FAILED", "BAD_INPUT"),
            (3, None, "FAILED", "RUN_ERROR"),
            (75, None, "STOPPED", "USER_REQUEST"),
            (75, "PREEMPTED", "STOPPED", "PREEMPTED"),
            (1, "PREEMPTED", "FAILED", "PREEMPTED"),
            (-15, "USER_REQUEST", "STOPPED", "USER_REQUEST"),
            (-9, "NODE_LOST", "FAILED", "NODE_LOST"),
            (137, None, "FAILED", "WORKER_ERROR"),
        ],
    )
    def test_what_exit_codes_mean(
        self, code: int, ending: str | None, outcome: str, reason: str | None
    ) -> None:
        result = judge(1, code, "x", None if ending is None else ReasonCode(ending))
        assert (result.outcome, result.reason_code) == (outcome, reason)

    def test_an_entrypoint_that_cannot_be_run(self, folder: JobFolder, home: Path) -> None:
        words = [sys.executable, "-m", "stoplab_platform.supervisor", "--job", "j_1"]
        subprocess.run([*words, "--attempt", "1", "--", "/no/such/program"], check=False)
        result = result_of(folder)
        assert (result.outcome, result.reason_code) == ("FAILED", ReasonCode.RUN_ERROR)
        assert "/no/such/program" in str(result.message)

    def test_memory(self) -> None:
        killed = judge(1, -9, "x", None, oom=True)
        assert killed.reason_code is ReasonCode.OOM
        assert judge(1, -9, "x", None).reason_code is ReasonCode.WORKER_ERROR

    def test_the_kind_names_the_entrypoint(self, folder: JobFolder) -> None:
        folder.root.mkdir(parents=True)
        folder.spec.write_text(run_spec().to_yaml())
        assert entrypoint(folder) == [
            sys.executable, "-m", "stoplab_trainers.main", str(folder.spec),
        ]  # fmt: skip


class TestOutput:
    def test_every_byte_in_order_over_attempts(self, folder: JobFolder, attempts: Attempts) -> None:
        lines = "import sys; out = sys.stdout.buffer;"
        lines += "[out.write(b'%d\\xff\\r' % n) for n in range(50000)]; out.flush();"
        lines += "sys.stderr.write('last words without newline'); sys.stderr.flush();"
        attempts.run(lines + "import os; os.kill(os.getpid(), 9)")
        attempts.run("print('again')", 2)
        body = b"".join(b"%d\xff\r" % n for n in range(50000)) + b"last words without newline\n"
        first, second = re.split(rb"--- attempt 2 starts .*\n", log(folder))
        mark, _, written = first.partition(b"\n")
        assert mark.startswith(b"--- attempt 1 starts ")
        assert written == body
        assert second == b"again\n"

    def test_is_readable_while_it_runs(self, folder: JobFolder, attempts: Attempts) -> None:
        attempts.start(HANG)
        child_pid(folder)

    def test_what_outlives_the_child_does_not_hold_the_attempt(
        self, folder: JobFolder, attempts: Attempts
    ) -> None:
        below = f"subprocess.Popen([sys.executable, '-c', {HANG!r}])"
        code = f"import subprocess, sys, time; {below}; time.sleep(1.5)"
        assert attempts.run(code) == 0
        wait_for(lambda: gone(child_pid(folder)), "the grandchild's end")


class TestEnvironment:
    def test_what_the_child_is_told(self, folder: JobFolder, attempts: Attempts) -> None:
        names = ("STOPLAB_HOME", "STOPLAB_JOB_ID", "STOPLAB_ATTEMPT", "MLFLOW_TRACKING_URI")
        attempts.run(f"import os; print(*(os.environ[n] for n in {names}), sep='|')", 3)
        told = log(folder).splitlines()[-1].decode().split("|")
        assert told == [str(folder.root.parent.parent), "j_1", "3", os.environ[names[-1]]]


class TestHeartbeat:
    def test_counts_while_it_lives(self, folder: JobFolder, attempts: Attempts) -> None:
        attempts.start(HANG, 2)
        first = wait_for(lambda: read_heartbeat(folder), "a heartbeat")
        assert first.attempt == 2
        wait_for(lambda: read_heartbeat(folder) != first, "another beat")


class TestStop:
    def test_the_run_has_its_grace(self, folder: JobFolder, attempts: Attempts) -> None:
        code = PRINT_PID + (
            "path = os.environ['STOPLAB_HOME'] + '/jobs/j_1/stop.json'\n"
            "while not os.path.exists(path): time.sleep(0.01)\n"
            "time.sleep(0.5); print('saved', flush=True); sys.exit(75)"
        )
        process = attempts.start(code)
        child_pid(folder)
        request_stop(folder, 1, Intent.PAUSED)
        assert process.wait(20) == Exit.STOPPED
        assert log(folder).endswith(b"saved\n")
        assert result_of(folder).outcome == "STOPPED"

    def test_the_deaf_are_killed_at_the_deadline(
        self, folder: JobFolder, attempts: Attempts
    ) -> None:
        process = attempts.start(DEAF)
        pid = child_pid(folder)
        order = {"intent": "CANCELLED", "deadline_s": 0.2, "attempt": 1}
        write_json(folder.stop, {**order, "at": datetime.now(UTC).isoformat()})
        assert process.wait(20) == 128 + signal.SIGKILL
        assert gone(pid)
        result = result_of(folder)
        assert (result.outcome, result.reason_code) == ("STOPPED", ReasonCode.USER_REQUEST)

    def test_stopped_before_it_began(self, folder: JobFolder, attempts: Attempts) -> None:
        request_stop(folder, 1, Intent.CANCELLED)
        assert attempts.run("print('ran')") == Exit.STOPPED
        assert log(folder) == b""
        assert result_of(folder).outcome == "STOPPED"

    def test_an_order_to_an_older_attempt_means_nothing(
        self, folder: JobFolder, attempts: Attempts
    ) -> None:
        request_stop(folder, 1, Intent.PAUSED)
        assert attempts.run("pass", 2) == 0

    def test_sigterm_from_the_cluster(self, folder: JobFolder, attempts: Attempts) -> None:
        process = attempts.start(DEAF)
        pid = child_pid(folder)
        process.terminate()
        process.wait(20)
        assert gone(pid)
        result = result_of(folder)
        assert (result.outcome, result.reason_code) == ("FAILED", ReasonCode.PREEMPTED)

    def test_a_cancel_replaces_a_pause(self, folder: JobFolder) -> None:
        request_stop(folder, 1, Intent.PAUSED)
        first = read_stop(folder, 1)
        request_stop(folder, 1, Intent.PAUSED)
        assert read_stop(folder, 1) == first
        request_stop(folder, 1, Intent.CANCELLED)
        order = read_stop(folder, 1)
        assert order is not None
        assert (order.intent, order.deadline_s) == (Intent.CANCELLED, 5.0)
        clear_stop(folder, 1)
        assert folder.stop.exists()
        clear_stop(folder, 2)
        assert not folder.stop.exists()


class TestFence:
    def test_an_older_attempt_ends_itself(self, folder: JobFolder, attempts: Attempts) -> None:
        process = attempts.start(DEAF)
        pid = child_pid(folder)
        own(folder, 2)
        assert process.wait(20) == Exit.FENCED
        assert gone(pid)
        assert not folder.result.exists()

    def test_an_older_attempt_does_not_begin(self, folder: JobFolder, attempts: Attempts) -> None:
        own(folder, 2)
        assert attempts.run("pass") == Exit.FENCED
        assert log(folder) == b""
        with pytest.raises(Fenced):
            own(folder, 1)

    def test_one_process_an_attempt(self, folder: JobFolder, attempts: Attempts) -> None:
        claim_attempt(folder, 1)
        assert attempts.run("pass") == Exit.FENCED
        assert not folder.result.exists()

    def test_of_many_claims_one_wins(self, folder: JobFolder) -> None:
        won = []

        def claim() -> None:
            try:
                claim_attempt(folder, 1)
            except Fenced:
                return
            won.append(1)

        threads = [threading.Thread(target=claim) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1


class TestKills:
    def test_kill_9_of_the_supervisor_takes_the_child_along(
        self, folder: JobFolder, attempts: Attempts
    ) -> None:
        process = attempts.start(DEAF)
        pid = child_pid(folder)
        process.kill()
        wait_for(lambda: gone(pid), "the child's end")
        assert not folder.result.exists()

    def test_the_next_attempt_buries_what_is_left(
        self, folder: JobFolder, attempts: Attempts
    ) -> None:
        # A grandchild in a session of its own survives both kills.
        below = f"subprocess.Popen([sys.executable, '-c', {DEAF!r}], start_new_session=True)"
        process = attempts.start(f"import subprocess, sys, time; {below}; time.sleep(600)")
        pid = child_pid(folder)
        process.kill()
        process.wait()
        assert not gone(pid)
        assert attempts.run("print('second')", 2) == 0
        assert gone(pid)
        assert log(folder).endswith(b"second\n")

    def test_leaves_with_its_parent(self, folder: JobFolder, attempts: Attempts) -> None:
        # As under Ray, whose shell is killed while the entrypoint lives on.
        words = [sys.executable, "-m", "stoplab_platform.supervisor", "--job", "j_1"]
        words += ["--attempt", "1", "--leave-with-parent", "--", sys.executable, "-c", DEAF]
        code = f"import subprocess; subprocess.run({words!r})"
        parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        attempts.started.append(parent)
        pid = child_pid(folder)
        parent.kill()
        parent.wait()
        result = wait_for(lambda: read_result(folder, 1), "the result")
        assert gone(pid)
        assert (result.outcome, result.reason_code) == ("FAILED", ReasonCode.NODE_LOST)

    def test_stays_without_its_parent_elsewhere(
        self, folder: JobFolder, attempts: Attempts
    ) -> None:
        words = [sys.executable, "-m", "stoplab_platform.supervisor", "--job", "j_1"]
        words += ["--attempt", "1", "--", sys.executable, "-c", PRINT_PID + "time.sleep(2)"]
        code = f"import subprocess; subprocess.run({words!r})"
        parent = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        attempts.started.append(parent)
        child_pid(folder)
        parent.kill()
        parent.wait()
        result = wait_for(lambda: read_result(folder, 1), "the result")
        assert result.outcome == "SUCCEEDED"


class TestSpool:
    def test_is_drained_at_the_end(self, folder: JobFolder, attempts: Attempts) -> None:
        code = (
            "import json, time; from stoplab_platform.settings import Settings;"
            "folder = Settings().folders.job('j_1').run('run'); folder.root.mkdir(parents=True);"
            "tags = {'stoplab.job_id': 'j_1', 'stoplab.cell': 'run'};"
            "line = {'at': int(time.time() * 1000), 'verb': 'start', 'experiment': 'e',"
            " 'tags': tags, 'params': {}};"
            "folder.spool.write_text(json.dumps(line) + '\\n')"
        )
        assert attempts.run(code) == 0
        assert sent_run_id(folder.run("run")) is not None
