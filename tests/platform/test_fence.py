"""The fence: no attempt runs twice, and orphans end themselves, whatever is killed or away."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from stoplab_platform import contact, fence, settle
from stoplab_platform.decide import Patience
from stoplab_platform.errors import Fenced
from stoplab_platform.exits import Exit
from stoplab_platform.fence import bury, own, owner
from stoplab_platform.files import write_json
from stoplab_platform.handoff import read_heartbeat, read_result
from stoplab_platform.jobs.states import ReasonCode, State
from stoplab_platform.paths import JobFolder
from stoplab_platform.reconciler import Reconciler
from stoplab_platform.runner.local import LocalRunner
from stoplab_platform.supervisor import TERM_TO_KILL_S, Supervisor
from support_invariants import leaves, one_start
from support_jobs import QUICK, Lab, gone, reconciling, running_lab, supervisors, trainer
from support_store import lab_settings, wait_for

COUNTING = (
    "import os, sys, time; print('pid', os.getpid(), flush=True)\n"
    "while True: time.sleep(0.05); print('step', flush=True)"
)


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


def supervise(attempt: int, code: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "stoplab_platform.supervisor", "--job", "j_1"]
    words += ["--attempt", str(attempt), "--", sys.executable, "-c", code]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def log(folder: JobFolder) -> str:
    return folder.driver_log.read_text() if folder.driver_log.exists() else ""


def child_pid(folder: JobFolder) -> int:
    return int(wait_for(lambda: re.search(r"pid (\d+)\n", log(folder)), "the child's pid")[1])


class TestOwner:
    def test_it_never_goes_down(self, folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        # Somebody gives the folder to attempt 2 between our look and our write.
        def late(path: Path, value: object) -> None:
            monkeypatch.setattr(fence, "write_json", write_json)
            own(folder, 2)
            write_json(path, value)

        monkeypatch.setattr(fence, "write_json", late)
        with pytest.raises(Fenced, match="attempt 2"):
            own(folder, 1)
        assert owner(folder) == 2

    def test_of_many_the_newest_stays(self, folder: JobFolder) -> None:
        def take(attempt: int) -> None:
            try:
                own(folder, attempt)
            except Fenced:
                return

        for round_ in range(5):
            numbers = range(10 * round_ + 1, 10 * round_ + 11)
            threads = [threading.Thread(target=take, args=(n,)) for n in numbers]
            for thread in random.Random(round_).sample(threads, len(threads)):
                thread.start()
            for thread in threads:
                thread.join()
            assert owner(folder) == numbers[-1]


class TestTwice:
    def test_two_supervisors_of_one_attempt(
        self, folder: JobFolder, started: list[subprocess.Popen[bytes]]
    ) -> None:
        code = "import os, time; print('pid', os.getpid(), flush=True); time.sleep(1)"
        started += [supervise(1, code) for _ in range(4)]
        codes = sorted(process.wait(60) for process in started)
        assert codes == [Exit.OK, *[Exit.FENCED] * 3]
        one_start(folder)

    def test_an_attempt_that_was_is_never_again(
        self, folder: JobFolder, started: list[subprocess.Popen[bytes]]
    ) -> None:
        started.append(supervise(1, COUNTING))
        child_pid(folder)
        started[0].kill()
        started[0].wait()
        started.append(supervise(1, COUNTING))
        leaves(started[1], 30)
        one_start(folder)


class TestBury:
    def test_waits_for_silence(self, folder: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fence, "SILENCE_S", 0.01)
        assert bury(folder, "j_1", 2)
        write_json(folder.heartbeat, {"attempt": 1, "count": 5})
        assert bury(folder, "j_1", 2)

    def test_does_not_begin_beside_one_that_still_lives(
        self, home: Path, folder: JobFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(fence, "SILENCE_S", 0.1)
        monkeypatch.setattr(fence, "SILENCE_TRIES", 5)
        over = threading.Event()

        def beat() -> None:  # as from a machine that sees an old owner file
            count = 0
            while not over.wait(0.02):
                count += 1
                write_json(folder.heartbeat, {"attempt": 1, "count": count})

        thread = threading.Thread(target=beat)
        thread.start()
        try:
            wait_for(lambda: read_heartbeat(folder), "a heartbeat")
            words = [sys.executable, "-c", "print('ran')"]
            assert Supervisor(lab_settings(home), "j_1", 2, words).run() == Exit.FAILED
        finally:
            over.set()
            thread.join()
        result = read_result(folder, 2)
        assert result is not None
        assert result.reason_code is ReasonCode.START_FAILED
        assert "ran" not in log(folder)


class TestCutOff:
    def test_ends_before_another_may_start(self) -> None:
        assert contact.CUT_OFF_S + TERM_TO_KILL_S + 5 < Patience().silent_s

    def test_without_its_files_an_attempt_ends_itself(
        self, home: Path, folder: JobFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(contact, "CUT_OFF_S", 1.0)
        aside = folder.root.with_name("aside")
        pids: list[int] = []

        def unmount() -> None:
            pids.append(child_pid(folder))
            wait_for(lambda: read_heartbeat(folder), "a heartbeat")
            folder.root.rename(aside)

        thread = threading.Thread(target=unmount)
        thread.start()
        words = [sys.executable, "-c", COUNTING]
        with pytest.raises(Fenced):
            Supervisor(lab_settings(home), "j_1", 1, words).run()
        thread.join()
        assert gone(pids[0])
        beat = read_heartbeat(JobFolder(aside))
        assert beat is not None
        assert not folder.root.exists(), "it wrote into what may be an empty mount point"

    def test_a_short_absence_ends_nothing(
        self, folder: JobFolder, started: list[subprocess.Popen[bytes]]
    ) -> None:
        started.append(supervise(1, COUNTING))
        pid = child_pid(folder)
        first = wait_for(lambda: read_heartbeat(folder), "a heartbeat")
        aside = folder.root.with_name("aside")
        folder.root.rename(aside)
        steps = (aside / "logs" / "driver.log").read_text().count("step")
        wait_for(
            lambda: (aside / "logs" / "driver.log").read_text().count("step") > steps + 20,
            "a second of steps",
        )
        aside.rename(folder.root)
        wait_for(lambda: read_heartbeat(folder) != first, "another heartbeat")
        assert not gone(pid)


class TestFrozen:
    def test_a_machine_that_comes_back_after_its_job_went_on(
        self, folder: JobFolder, started: list[subprocess.Popen[bytes]]
    ) -> None:
        started.append(supervise(1, COUNTING))
        pid = child_pid(folder)
        wait_for(lambda: read_heartbeat(folder), "a heartbeat")
        both = [psutil.Process(pid), psutil.Process(started[0].pid)]
        for process in both:
            process.suspend()
        steps = log(folder).count("step")
        own(folder, 2)  # an hour passes, and the job goes on elsewhere
        for process in both:
            process.resume()
        leaves(started[0])
        assert gone(pid)
        assert log(folder).count("step") - steps < 40  # of 50 ms: two seconds on a busy machine
        assert not folder.result.exists()


class TestChaos:
    def test_each_attempt_begins_once_and_alone(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(settle.tracking, "finish_runs", lambda *_: 0)
        with running_lab(home, trainer(300)) as lab:
            second = Reconciler(
                lab.store, LocalRunner(home / "runner"), lab.settings,
                patience=QUICK, command=trainer(300),
            )  # fmt: skip
            job = lab.submit()
            with reconciling(second):
                for victim in ("supervisor", "child", "supervisor of a frozen child"):
                    kill(lab, job.id, victim)
                lab.wait(job, State.SUCCEEDED, 90)
            written = lab.log(job)
            assert "two attempts at once" not in written
            assert re.findall(r"attempt (\d+) from", written) == ["1", "2", "3", "4"]
            assert lab.steps(job) == 300


def kill(lab: Lab, job_id: str, victim: str) -> None:
    """SIGKILL to a process of the running attempt; the next one follows."""
    lab.wait(lab.store.get(job_id), State.RUNNING)
    job = lab.store.get(job_id)
    pid = lab.pid(job, job.attempt)
    if "frozen" in victim:
        os.kill(pid, signal.SIGSTOP)
    if victim == "child":
        os.kill(pid, signal.SIGKILL)
    else:
        for process in supervisors(lab.settings.home, job_id):
            process.kill()
    wait_for(lambda: lab.store.get(job_id).attempt > job.attempt, "the next attempt", 40)
