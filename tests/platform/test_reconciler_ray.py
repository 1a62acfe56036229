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
from support_jobs import QUICK, Lab, running_lab, supervisors, trainer
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


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


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
