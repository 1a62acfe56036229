"""Pause, resume, retry, cancel and priority where they meet something else."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stoplab_platform import settle
from stoplab_platform.attempts import Attempts
from stoplab_platform.errors import IllegalMove, RunnerUnavailable
from stoplab_platform.fence import own, owner
from stoplab_platform.files import write_atomic
from stoplab_platform.jobs.models import Intent, Job
from stoplab_platform.jobs.states import ReasonCode, State
from stoplab_platform.paths import JobFolder
from stoplab_platform.queueing import Queue
from stoplab_platform.runner.base import Launch, Observed, RunnerState
from stoplab_platform.runner.local import LocalRunner
from stoplab_platform.service import Jobs
from support_invariants import frees
from support_jobs import DEAF, QUICK, Lab, running_lab, script, supervisors, trainer
from support_store import ADMIN, lab_settings, open_store, run_spec, wait_for


@pytest.fixture(autouse=True)
def _quiet_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle.tracking, "finish_runs", lambda *_: 0)


class Closed(LocalRunner):
    """Answers, and takes no start until it is opened."""

    is_open = False

    def start(self, launch: Launch) -> None:
        if not self.is_open:
            raise RunnerUnavailable("no more jobs today")
        super().start(launch)


def reason(lab: Lab, job: Job) -> str:
    return str(lab.jobs.view(lab.job(job))["status"]["queue"]["reason"])


def position(lab: Lab, job: Job) -> int:
    return int(lab.jobs.view(lab.job(job))["status"]["queue"]["position"])


class Growing(LocalRunner):
    """Takes a start at once, and begins it when there is room."""

    has_room = False
    _taken: Launch | None = None

    def start(self, launch: Launch) -> None:
        self._taken = launch

    def observe(self, submission_id: str) -> Observed:
        if self._taken is None:
            return Observed(RunnerState.ABSENT)
        if not self.has_room:
            return Observed(RunnerState.PENDING, "1 GPU is missing")
        super().start(self._taken)
        return super().observe(submission_id)


def submitted(home: Path, **compute: Any) -> tuple[Job, JobFolder]:
    """A job, and its folder, of a lab that does not run yet."""
    settings = lab_settings(home)
    with open_store(settings.database) as store:
        job = Jobs(store, settings).submit(ADMIN, run_spec(compute=compute)).job
    return job, settings.folders.job(job.id)


class TestStarting:
    @pytest.mark.parametrize("ask", ["pause", "cancel"])
    def test_a_stop_before_the_runner_took_it(self, home: Path, ask: str) -> None:
        runner = Closed(home / "runner")
        with running_lab(home, trainer(3), runner=runner) as lab:
            job = lab.submit()
            lab.wait(job, State.STARTING)
            getattr(lab.jobs, ask)(ADMIN, job.id)
            stopped = lab.wait(job, State.PAUSED if ask == "pause" else State.CANCELLED, 15)
            assert stopped.reason_code is ReasonCode.USER_REQUEST
            runner.is_open = True
            if ask == "pause":
                lab.jobs.resume(ADMIN, job.id)
                lab.wait(job, State.SUCCEEDED)
                assert "attempt 1 from" not in lab.log(job)
                assert lab.log(job).count("attempt 2 from 0") == 1

    def test_a_pause_while_the_process_starts(self, home: Path) -> None:
        with running_lab(home, trainer(30)) as lab:
            job = lab.submit()
            wait_for(lambda: supervisors(home, job.id), "a supervisor")
            lab.jobs.pause(ADMIN, job.id)
            lab.wait(job, State.PAUSED)
            wait_for(lambda: not supervisors(home), "nothing to live")
            lab.jobs.resume(ADMIN, job.id)
            lab.wait(job, State.SUCCEEDED)
            assert lab.log(job).count("attempt 2 from") == 1


class TestRoom:
    """The cluster grows by itself: what has no room yet waits."""

    def test_a_job_outlasts_the_patience_with_a_start(self, home: Path) -> None:
        runner, patience = Growing(home / "runner"), replace(QUICK, start_s=4)
        with running_lab(home, trainer(3), runner=runner, patience=patience) as lab:
            job = lab.submit()
            told = wait_for(lambda: lab.job(job).message, "a word")
            assert told == "the cluster has no room for it yet (1 GPU is missing)"
            began = time.monotonic()
            wait_for(lambda: time.monotonic() > began + 4, "more than that")
            view = lab.jobs.view(lab.job(job))["status"]
            assert (view["state"], view["message"], view["attempt"]) == ("STARTING", told, 1)
            runner.has_room = True
            done = lab.wait(job, State.SUCCEEDED)
            assert (done.attempt, done.message) == (1, None)
            assert [e.message for e in lab.store.events(job.id) if e.verb == "wait"] == [told]


class TestNews:
    NEWS = """
import os, time
from stoplab_platform.handoff import tell_news
from stoplab_platform.settings import Settings

folder = Settings().folders.job(os.environ["STOPLAB_JOB_ID"])
for count in (2, 4):
    tell_news(folder.run("run"), 1, f"goes on with {count} workers")
    while not (folder.root / f"heard-{count}").exists():
        time.sleep(0.05)
"""

    def test_what_a_run_says_of_its_workers_is_in_the_history_once(self, home: Path) -> None:
        with running_lab(home, script(self.NEWS)) as lab:
            compute = {"workers": 4, "min_workers": 2}
            job = lab.submit(compute=compute, optim={"batch_size": 40})
            for count in (2, 4):
                told = f"goes on with {count} workers"
                wait_for(lambda: lab.job(job).message == told, "the news")  # noqa: B023
                assert lab.job(job).state is State.RUNNING
                (lab.folder(job).root / f"heard-{count}").touch()
            assert lab.wait(job, State.SUCCEEDED).message is None
            events = [e.message for e in lab.store.events(job.id) if e.verb == "workers"]
        assert events == ["goes on with 2 workers", "goes on with 4 workers"]


class TestStartsThatFail:
    def test_a_folder_that_cannot_be_prepared(self, home: Path) -> None:
        job, folder = submitted(home, max_failures=1)
        write_atomic(folder.mark(1).parent, "a file where a folder has to be")
        with running_lab(home, trainer(3)) as lab:
            failed = lab.wait(job, State.FAILED)
            assert lab.states(job) == ["QUEUED", "STARTING", "RECOVERING", "FAILED"]
            assert failed.reason_code is ReasonCode.RETRIES_EXHAUSTED
            assert "START_FAILED" in str(failed.message)
            assert "owners" in str(failed.message)

    def test_a_folder_that_is_ahead_of_the_database(self, home: Path) -> None:
        job, folder = submitted(home, max_failures=0)
        own(folder, 4)
        with running_lab(home, trainer(3)) as lab:
            assert lab.wait(job, State.SUCCEEDED).attempt == 5
            told = lab.store.history(job.id)[2]
            assert (told.to_state, told.reason_code) == (State.RECOVERING, ReasonCode.START_FAILED)
            assert "attempt 4 owns" in str(told.message)

    def test_a_kill_where_a_newer_attempt_has_the_folder(self, home: Path) -> None:
        job, folder = submitted(home)
        own(folder, 4)
        Attempts(LocalRunner(home / "runner"), lab_settings(home)).kill(replace(job, attempt=1))
        assert owner(folder) == 4


class TestStopping:
    def test_a_pause_becomes_a_cancel(self, home: Path) -> None:
        with running_lab(home, DEAF) as lab:
            job = lab.submit()
            pid = lab.pid(job)
            lab.wait(job, State.RUNNING)
            lab.jobs.pause(ADMIN, job.id)
            assert lab.job(job).intent is Intent.PAUSED
            with pytest.raises(IllegalMove, match="cancel"):
                lab.jobs.pause(ADMIN, job.id)
            lab.jobs.cancel(ADMIN, job.id)
            frees(lab, job, pid, State.CANCELLED, 15)
            assert lab.states(job)[-3:] == ["STOPPING", "STOPPING", "CANCELLED"]

    @pytest.mark.slow  # it is the grace that is measured
    def test_the_deaf_are_paused_within_70_s(self, home: Path) -> None:
        with running_lab(home, DEAF) as lab:
            job = lab.submit()
            pid = lab.pid(job)
            lab.wait(job, State.RUNNING)
            lab.jobs.pause(ADMIN, job.id)
            frees(lab, job, pid, State.PAUSED, 70)
            assert lab.steps(job) == 7  # what it saved is there


class TestResume:
    def test_waits_where_the_capacity_is_gone(self, home: Path) -> None:
        with running_lab(home, trainer(60), cpus=1) as lab:
            first = lab.submit("first")
            lab.wait(first, State.RUNNING)
            lab.jobs.pause(ADMIN, first.id)
            lab.wait(first, State.PAUSED)
            second = lab.submit("second")
            lab.wait(second, State.RUNNING)
            lab.jobs.resume(ADMIN, first.id)
            assert "1 CPUs of 1 CPUs are reserved" in reason(lab, first)
            assert lab.job(first).state is State.QUEUED
            lab.wait(second, State.SUCCEEDED)
            lab.wait(first, State.SUCCEEDED)


class TestRetry:
    def test_of_a_retry(self, home: Path) -> None:
        with running_lab(home, script("raise KeyError('lr')")) as lab:
            first = lab.submit()
            lab.wait(first, State.FAILED)
            saved = lab.folder(first).run("run").checkpoints / "step-00000007"
            saved.mkdir(parents=True)
            (saved / "state.pt").write_text("seven")
            second = lab.jobs.retry(ADMIN, first.id).job
            lab.wait(second, State.FAILED)
            third = lab.jobs.retry(ADMIN, second.id).job
            lab.wait(third, State.FAILED)
            assert (second.retry_of, third.retry_of) == (first.id, second.id)
            taken = lab.folder(third).run("run").checkpoints / "step-00000007" / "state.pt"
            assert taken.read_text() == "seven"
            lab.jobs.delete(ADMIN, first.id)
            assert taken.read_text() == "seven"

    def test_of_one_that_never_started_goes_on_from_what_that_one_had(self, home: Path) -> None:
        with running_lab(home, trainer(9999), cpus=1) as lab:
            first = lab.submit()
            lab.wait(first, State.RUNNING)
            lab.jobs.cancel(ADMIN, first.id)
            lab.wait(first, State.CANCELLED)
            lab.submit("busy", compute={"cpus_per_worker": 1})
            second = lab.jobs.retry(ADMIN, first.id).job
            lab.jobs.cancel(ADMIN, second.id)
            assert lab.job(second).attempt == 0
            assert lab.jobs.retry(ADMIN, second.id).job.retry_of == first.id


class TestQueue:
    def test_a_new_priority_is_a_new_place(self, home: Path) -> None:
        with running_lab(home, trainer(50), cpus=1) as lab:
            running = lab.submit("running")
            lab.wait(running, State.RUNNING)
            early, late = lab.submit("early"), lab.submit("late")
            assert (position(lab, early), position(lab, late)) == (1, 2)
            assert "waits behind" in reason(lab, late) or "reserved" in reason(lab, late)
            lab.jobs.edit(ADMIN, late.id, lab.job(late).version, priority=5)
            wait_for(lambda: position(lab, late) == 1, "its new place")
            assert position(lab, early) == 2
            lab.wait(late, State.RUNNING)
            assert lab.job(early).state is State.QUEUED

    def test_every_replica_can_tell_why(self, home: Path) -> None:
        with (
            running_lab(home, trainer(9999), cpus=1) as lab,
            open_store(lab.settings.database) as own,
        ):
            lab.wait(lab.submit("running"), State.RUNNING)
            job = lab.submit("waits")
            # It makes no pass of its own.
            queue = Queue(own, LocalRunner(home / "runner"), lab.settings)
            other = Jobs(own, lab.settings, queue.waiting)
            told = other.view(own.get(job.id))["status"]["queue"]
            assert told["position"] == 1
            assert "1 CPUs of 1 CPUs are reserved" in told["reason"]
            more = other.submit(ADMIN, run_spec("more")).job
            assert other.view(more)["status"]["queue"]["position"] == 2

    def test_a_start_that_waits_for_the_cluster_says_so(self, home: Path) -> None:
        class Mute(LocalRunner):
            def observe(self, submission_id: str) -> object:  # type: ignore[override]
                raise RunnerUnavailable("away")

        with running_lab(home, trainer(3), runner=Mute(home / "runner")) as lab:
            job = lab.submit()
            told = wait_for(
                lambda: [e for e in lab.store.events(job.id) if e.verb == "wait"], "an event"
            )
            assert "the cluster does not answer" in str(told[0].message)
            assert lab.job(job).state is State.STARTING
