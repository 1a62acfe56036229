"""The reconciler with real processes: jobs live, are killed, and end as they should."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from stoplab_platform import settle
from stoplab_platform.errors import RunnerUnavailable, StoreUnavailable, TrackerUnavailable
from stoplab_platform.jobs.models import Job
from stoplab_platform.jobs.states import ACTIVE, ReasonCode, State
from stoplab_platform.jobs.store import NONE, JobStore
from stoplab_platform.reconciler import Reconciler
from stoplab_platform.runner.base import Launch, Observed
from stoplab_platform.runner.local import LocalRunner
from stoplab_platform.service import Jobs
from stoplab_platform.specs import load_spec, parse_spec
from support_invariants import frees
from support_jobs import (
    QUICK,
    Lab,
    gone,
    kill_supervisors,
    reconciling,
    running_lab,
    script,
    supervisors,
    trainer,
)
from support_store import ADMIN, lab_settings, open_store, run_spec, wait_for

pytestmark = pytest.mark.usefixtures("watched_sessions")
Told = list[tuple[str, str]]


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What the tracker is told; importing MLflow takes longer than all else here."""
    told: Told = []

    def note(_uri: str, job_id: str, status: str) -> int:
        told.append((job_id, status))
        return 0

    monkeypatch.setattr(settle.tracking, "finish_runs", note)
    return told


@pytest.fixture
def lab(home: Path) -> Iterator[Lab]:
    with running_lab(home, trainer(20)) as lab:
        yield lab


@pytest.fixture
def long_lab(home: Path) -> Iterator[Lab]:
    """A lab whose runs last longer than a test."""
    with running_lab(home, trainer(9999)) as lab:
        yield lab


class TestLife:
    def test_from_queue_to_success(self, lab: Lab, told: Told) -> None:
        job = lab.submit()
        done = lab.wait(job, State.SUCCEEDED)
        assert lab.states(job) == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]
        assert (done.attempt, done.reason_code, done.message) == (1, None, None)
        assert lab.steps(job) == 20
        assert load_spec(lab.folder(job).spec) == parse_spec(job.spec)
        wait_for(lambda: lab.job(job).settled, "the tracker to know")
        assert told == [(job.id, "FINISHED")]

    def test_an_error_of_the_run_fails_at_once(self, home: Path, told: Told) -> None:
        with running_lab(home, script("raise KeyError('lr')")) as lab:
            job = lab.submit()
            failed = lab.wait(job, State.FAILED)
            assert (failed.reason_code, failed.attempt) == (ReasonCode.RUN_ERROR, 1)
            assert failed.message == "KeyError: 'lr'"
            wait_for(lambda: told, "the tracker to know")
            assert told == [(job.id, "FAILED")]

    def test_one_that_is_shorter_than_a_pass_has_run_too(self, home: Path) -> None:
        with running_lab(home, script("pass"), reconcile_period_s=2) as lab:
            job = lab.submit()
            done = lab.wait(job, State.SUCCEEDED)
            assert lab.states(job) == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]
            assert done.started_at is not None

    def test_the_digest_comes_to_the_row(self, home: Path) -> None:
        code = (
            "from stoplab_platform.files import write_json;"
            "from stoplab_platform.settings import Settings; s = Settings();"
            "write_json(s.folders.job(s.job_id).run('run').summary, {'run_digest': 'abc'})"
        )
        with running_lab(home, script(code)) as lab:
            assert lab.wait(lab.submit(), State.SUCCEEDED).run_digest == "abc"


class TestRecovery:
    def test_kill_9_of_the_run(self, home: Path) -> None:
        with running_lab(home, trainer(100)) as lab:
            job = lab.submit()
            pid = lab.pid(job)
            lab.wait(job, State.RUNNING)
            wait_for(lambda: lab.steps(job) > 3, "some steps")
            os.kill(pid, signal.SIGKILL)
            lab.wait(job, State.SUCCEEDED)
            assert lab.states(job)[2:] == ["RUNNING", "RECOVERING", "RUNNING", "SUCCEEDED"]
            assert lab.job(job).attempt == 2
            assert "attempt 2 from 0 " not in lab.log(job)  # it went on from what was saved
            recovering = lab.store.history(job.id)[3]
            assert recovering.reason_code is ReasonCode.WORKER_ERROR
            assert "signal 9" in str(recovering.message)

    def test_kill_9_of_the_supervisor(self, home: Path) -> None:
        with running_lab(home, trainer(100)) as lab:
            job = lab.submit()
            pid = lab.pid(job)
            lab.wait(job, State.RUNNING)
            (supervisor,) = supervisors(home, job.id)
            supervisor.kill()
            lab.wait(job, State.SUCCEEDED)
            assert lab.states(job)[2:] == ["RUNNING", "RECOVERING", "RUNNING", "SUCCEEDED"]
            assert gone(pid)

    def test_the_budget_runs_out(self, home: Path) -> None:
        with running_lab(home, script("import os; os.kill(os.getpid(), 9)")) as lab:
            job = lab.submit(compute={"max_failures": 1})
            failed = lab.wait(job, State.FAILED)
            assert failed.reason_code is ReasonCode.RETRIES_EXHAUSTED
            assert failed.attempt == 2

    def test_a_start_that_was_recorded_but_not_made(self, home: Path) -> None:
        settings = lab_settings(home)
        with open_store(settings.database) as store:
            jobs = queued_jobs(store, home)
            job = store.move(jobs[0], State.STARTING, actor="an API that died", attempt=1)
        with running_lab(home, trainer(3)) as lab:
            lab.wait(job, State.SUCCEEDED)
            assert lab.job(job).attempt == 1

    def test_a_start_that_was_made_is_adopted(self, long_lab: Lab, home: Path) -> None:
        job = long_lab.submit()
        pid = long_lab.pid(job)
        second = Reconciler(
            long_lab.store, LocalRunner(home / "runner"), long_lab.settings,
            patience=QUICK, command=trainer(9999),
        )  # fmt: skip
        with reconciling(second):
            steps = long_lab.steps(job)
            wait_for(lambda: long_lab.steps(job) > steps + 20, "a second of training")
        assert not gone(pid)
        assert len(supervisors(home)) == 1
        assert long_lab.log(job).count("attempt 1 from") == 1


def queued_jobs(store: JobStore, home: Path) -> Sequence[Job]:
    Jobs(store, lab_settings(home)).submit(ADMIN, run_spec())
    return store.unfinished()


API = """
import sys, threading
from pathlib import Path
from support_jobs import QUICK, trainer
from support_store import lab_settings
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.reconciler import Reconciler
from stoplab_platform.runner.local import LocalRunner
home = Path(sys.argv[1])
settings = lab_settings(home, capacity_cpus=4)
store = JobStore(settings.database)
runner = LocalRunner(home / "runner")
Reconciler(store, runner, settings, patience=QUICK, command=trainer(100)).run_forever(
    threading.Event()
)
"""


class TestApiDies:
    def test_kill_9_of_the_api_while_a_job_runs(self, home: Path) -> None:
        settings = lab_settings(home, capacity_cpus=4)
        with open_store(settings.database) as store:
            (job,) = queued_jobs(store, home)
            tests = Path(__file__).parents[1]
            api = subprocess.Popen([sys.executable, "-c", API, str(home)], cwd=tests)
            try:
                wait_for(lambda: store.get(job.id).state is State.RUNNING, "RUNNING")
            finally:
                api.kill()
                api.wait()
            with running_lab(home, trainer(100)) as lab:
                lab.wait(job, State.SUCCEEDED)
                assert lab.states(job) == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]
                assert lab.job(job).attempt == 1
                assert lab.log(job).count("attempt 1 from 0") == 1
                assert lab.steps(job) == 100


class TestStopping:
    def test_cancel(self, long_lab: Lab, told: Told) -> None:
        job = long_lab.submit()
        pid = long_lab.pid(job)
        long_lab.wait(job, State.RUNNING)
        long_lab.jobs.cancel(ADMIN, job.id)
        frees(long_lab, job, pid, State.CANCELLED, 15)
        assert long_lab.job(job).reason_code is ReasonCode.USER_REQUEST
        assert "saved" in long_lab.log(job)
        wait_for(lambda: told, "the tracker to know")
        assert told == [(job.id, "KILLED")]

    def test_cancel_of_the_deaf(self, home: Path) -> None:
        deaf = (
            "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
            "print('attempt 1 from 0 pid', os.getpid(), flush=True); time.sleep(600)"
        )
        with running_lab(home, script(deaf)) as lab:
            job = lab.submit()
            pid = lab.pid(job)
            lab.jobs.cancel(ADMIN, job.id)
            frees(lab, job, pid, State.CANCELLED, 15)
            assert "saved" not in lab.log(job)

    def test_cancel_within_15_s_though_nothing_answers(self, long_lab: Lab, home: Path) -> None:
        job = long_lab.submit()
        pid = long_lab.pid(job)
        long_lab.wait(job, State.RUNNING)
        (supervisor,) = supervisors(home, job.id)
        os.kill(pid, signal.SIGSTOP)
        supervisor.suspend()
        long_lab.jobs.cancel(ADMIN, job.id)
        frees(long_lab, job, pid, State.CANCELLED, 15)
        assert "kill" in [event.verb for event in long_lab.store.events(job.id)]

    def test_cancel_before_the_first_heartbeat(self, long_lab: Lab) -> None:
        job = long_lab.submit()
        wait_for(lambda: long_lab.job(job).state is not State.QUEUED, "admission")
        long_lab.jobs.cancel(ADMIN, job.id)
        long_lab.wait(job, State.CANCELLED, 15)
        assert wait_for(lambda: not supervisors(long_lab.settings.home), "nothing to live")

    def test_pause_and_resume(self, home: Path, told: Told) -> None:
        with running_lab(home, trainer(100)) as lab:
            job = lab.submit()
            lab.wait(job, State.RUNNING)
            wait_for(lambda: lab.steps(job) > 3, "some steps")
            lab.jobs.pause(ADMIN, job.id)
            lab.wait(job, State.PAUSED)
            wait_for(lambda: not supervisors(home), "nothing to live")
            lab.jobs.resume(ADMIN, job.id)
            lab.wait(job, State.SUCCEEDED)
            assert lab.job(job).attempt == 2
            assert "attempt 2 from 0 " not in lab.log(job)
            wait_for(lambda: (job.id, "FINISHED") in told, "the tracker to know")


class TestQueue:
    def test_waits_for_the_reservation(self, home: Path) -> None:
        with running_lab(home, trainer(60), cpus=1) as lab:
            first, second = lab.submit("first"), lab.submit("second")
            lab.wait(first, State.RUNNING)
            info = lab.reconciler.waiting()[second.id]
            assert info.position == 1
            assert "1 CPUs of 1 CPUs" in info.reason
            assert lab.job(second).state is State.QUEUED
            lab.wait(second, State.SUCCEEDED)
            assert lab.job(first).state is State.SUCCEEDED
            assert lab.reconciler.waiting() == {}

    def test_two_replicas_share_the_capacity(self, home: Path) -> None:
        with (
            running_lab(home, trainer(10), cpus=2) as lab,
            open_store(lab.settings.database) as own,
        ):
            other = Reconciler(
                own, LocalRunner(home / "runner"), lab.settings,
                patience=QUICK, command=trainer(10),
            )  # fmt: skip
            with reconciling(other):
                jobs = [lab.submit(f"job {n}") for n in range(4)]

                def all_done() -> bool:
                    found = [lab.job(job).state for job in jobs]
                    assert sum(state in ACTIVE for state in found) <= 2
                    return all(state is State.SUCCEEDED for state in found)

                wait_for(all_done, "all jobs", 60)
            for job in jobs:
                assert lab.states(job) == ["QUEUED", "STARTING", "RUNNING", "SUCCEEDED"]
                assert lab.log(job).count("attempt 1 from 0") == 1


class Switch(LocalRunner):
    """A local runner that can be away."""

    away = True

    def start(self, launch: Launch) -> None:
        self._check()
        super().start(launch)

    def observe(self, submission_id: str) -> Observed:
        self._check()
        return super().observe(submission_id)

    def stop(self, submission_id: str) -> None:
        self._check()
        super().stop(submission_id)

    def alive(self) -> bool:
        return not self.away

    def _check(self) -> None:
        if self.away:
            raise RunnerUnavailable("away")


class TestWhatIsAway:
    def test_the_cluster(self, home: Path) -> None:
        runner = Switch(home / "runner")
        with running_lab(home, trainer(100), runner=runner) as lab:
            job = lab.submit()
            wait_for(lambda: job.id in lab.reconciler.waiting(), "the queue to say why")
            assert lab.reconciler.waiting()[job.id].reason == "the cluster does not answer"
            assert lab.job(job).state is State.QUEUED
            runner.away = False
            lab.wait(job, State.RUNNING)
            runner.away = True  # a healthy run does not mind
            lab.wait(job, State.SUCCEEDED)
            assert lab.job(job).attempt == 1

    def test_the_database(self, home: Path) -> None:
        class Flaky(JobStore):
            failures = 3

            def unfinished(self, known: Mapping[str, Job] = NONE) -> Sequence[Job]:
                if self.failures:
                    self.failures -= 1
                    raise StoreUnavailable("away")
                return super().unfinished(known)

        store = Flaky(lab_settings(home).database)
        with running_lab(home, trainer(1), store=store) as lab:
            lab.wait(lab.submit(), State.SUCCEEDED)
        assert store.failures == 0
        store.close()

    def test_the_tracker(self, home: Path, monkeypatch: pytest.MonkeyPatch, told: Told) -> None:
        calls: list[str] = []

        def flaky(_uri: str, job_id: str, status: str) -> int:
            calls.append(status)
            if len(calls) == 1:
                raise TrackerUnavailable("away")
            return 0

        monkeypatch.setattr(settle.tracking, "finish_runs", flaky)
        monkeypatch.setattr(settle.tracking, "answers", lambda _uri: False)
        monkeypatch.setattr(settle, "AGAIN_S", 0.1)
        with running_lab(home, trainer(1)) as lab:
            job = lab.submit()
            lab.wait(job, State.SUCCEEDED)
            wait_for(lambda: lab.job(job).settled, "the tracker to know")
        assert calls == ["FINISHED", "FINISHED"]

    def test_one_jobs_folder(self, home: Path) -> None:
        with running_lab(home, trainer(1)) as lab:
            broken = lab.submit("broken", compute={"cpus_per_worker": 0.1})
            with_file_for_folder(lab, broken)
            healthy = lab.submit("healthy")
            lab.wait(healthy, State.SUCCEEDED)
            assert lab.job(broken).state is not State.SUCCEEDED
            assert lab.reconciler.last_pass_age_s < 10


def with_file_for_folder(lab: Lab, job: Job) -> None:
    """The job's folder cannot be made."""
    kill_supervisors(lab.settings.home)
    jobs = lab.settings.folders.jobs
    jobs.mkdir(exist_ok=True)
    folder = lab.folder(job).root
    if folder.exists():
        folder.rename(jobs / "aside")
    folder.touch()
