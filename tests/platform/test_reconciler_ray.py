"""Jobs on a real Ray head: they run, recover, stop in time, and survive no dead node."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from stoplab_platform import settle
from stoplab_platform.ids import submission_id
from stoplab_platform.jobs.states import State
from stoplab_platform.runner.base import RunnerState
from stoplab_platform.runner.ray_jobs import RayJobsRunner
from support_jobs import QUICK, Lab, gone, running_lab, script, supervisors, trainer
from support_ray import RayHead, ray_head
from support_store import ADMIN, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head() as head:
        yield head


@pytest.fixture
def lab(home: Path, head: RayHead, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    monkeypatch.setattr(settle.tracking, "finish_runs", lambda *_: 0)
    runner = RayJobsRunner(head.dashboard, head.token_path)
    with running_lab(home, trainer(9999), runner=runner, patience=QUICK) as lab:
        yield lab
    runner.close()


ACTOR = """
import os, time
import ray
ray.init(log_to_driver=False)
@ray.remote(num_cpus=0)
class Worker:
    def pid(self):
        return os.getpid()
    def work(self):
        while True:
            time.sleep(0.1)
worker = Worker.remote()
pid = ray.get(worker.pid.remote())
print("attempt", os.environ["STOPLAB_ATTEMPT"], "from 0 pid", pid, flush=True)
ray.get(worker.work.remote())
"""
"""A driver whose work is done by a process of Ray's, as Ray Train's is."""


def test_recovers_and_cancels(lab: Lab, home: Path) -> None:
    job = lab.submit()
    pid = lab.pid(job)
    lab.wait(job, State.RUNNING)
    wait_for(lambda: lab.steps(job) > 3, "some steps")
    os.kill(pid, signal.SIGKILL)
    second = lab.pid(job, 2)
    lab.wait(job, State.RUNNING)
    assert lab.states(job)[2:] == ["RUNNING", "RECOVERING", "RUNNING"]
    assert int(re.findall(r"attempt 2 from (\d+)", lab.log(job))[0]) > 3

    (supervisor,) = supervisors(home, job.id)
    supervisor.kill()
    third = lab.pid(job, 3)
    assert gone(second)
    lab.wait(job, State.RUNNING)

    begin = time.monotonic()
    lab.jobs.cancel(ADMIN, job.id)
    lab.wait(job, State.CANCELLED, 15)
    wait_for(lambda: gone(third) and not supervisors(home), "nothing to live", 15)
    assert time.monotonic() - begin < 15
    for attempt in (1, 2, 3):
        name = submission_id(job.id, attempt)
        wait_for(lambda n=name: lab.runner.observe(n).state.over, "Ray to see it", 15)


@pytest.mark.slow
def test_workers_of_a_killed_driver_are_gone_when_the_next_attempt_begins(
    home: Path, head: RayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle.tracking, "finish_runs", lambda *_: 0)
    runner = RayJobsRunner(head.dashboard, head.token_path)
    with running_lab(home, script(ACTOR), runner=runner, patience=QUICK) as lab:
        job = lab.submit()
        worker = lab.pid(job)
        lab.wait(job, State.RUNNING)
        # By this the next attempt would find it on its own machine.
        assert psutil.Process(worker).environ()["STOPLAB_ATTEMPT"] == "1"
        (supervisor,) = supervisors(home, job.id)
        supervisor.kill()
        lab.pid(job, 2)
        assert gone(worker)
        assert lab.log(job).count("attempt 2 from") == 1
        lab.jobs.cancel(ADMIN, job.id)
        lab.wait(job, State.CANCELLED, 15)
    runner.close()


def test_a_killed_raylet_leaves_nothing_alive(lab: Lab, home: Path, head: RayHead) -> None:
    job = lab.submit()
    pid = lab.pid(job)
    lab.wait(job, State.RUNNING)
    assert lab.runner.observe(submission_id(job.id, 1)).state is RunnerState.RUNNING
    head.part("raylet").kill()
    wait_for(lambda: gone(pid) and not supervisors(home), "the orphans' end", 30)
    lab.wait(job, State.RECOVERING, 60)
    lab.jobs.cancel(ADMIN, job.id)
    lab.wait(job, State.CANCELLED, 15)
