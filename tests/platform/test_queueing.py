"""What those who wait are told, between two looks at the whole queue."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from stoplab_platform.jobs.models import Job
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.queueing import LEASE_PERIODS, Queue
from stoplab_platform.runner.local import LocalRunner
from stoplab_platform.service import Jobs
from stoplab_platform.settings import Settings
from support_store import ADMIN, lab_settings, open_store, run_spec, wait_for

NONE: Mapping[str, Job] = {}


class Counting(JobStore):
    """A store that counts how often all unfinished jobs were asked for."""

    looks = 0

    def unfinished(self, known: Mapping[str, Job] = NONE) -> Sequence[Job]:
        self.looks += 1
        return super().unfinished(known)


@pytest.fixture
def settings(home: Path) -> Settings:
    return lab_settings(home, capacity_cpus=2).model_copy(update={"reconcile_period_s": 3600})


def told(jobs: Jobs, priority: int = 0, workers: int = 1) -> Any:
    """What a new job is told of its place."""
    spec = run_spec(compute={"workers": workers}, optim={"batch_size": 40})
    return jobs.view(jobs.submit(ADMIN, spec, priority=priority).job)["status"]["queue"]


def test_a_new_job_is_told_its_place_without_a_look_at_all(home: Path, settings: Settings) -> None:
    with open_store(settings.database):
        store = Counting(settings.database)
        queue = Queue(store, LocalRunner(home / "runner"), settings)
        jobs = Jobs(store, settings, queue=queue.waiting)
        places = [told(jobs)["position"] for _ in range(2)]  # these may start
        assert store.looks == 2
        places += [told(jobs)["position"] for _ in range(6)]
        assert places == [1, 2, 3, 4, 5, 6, 7, 8]
        assert store.looks == 2
        store.close()


@pytest.mark.parametrize("priority", [-1, 0, 1])
def test_it_is_what_a_look_at_all_would_tell(home: Path, settings: Settings, priority: int) -> None:
    with open_store(settings.database) as store:
        runner = LocalRunner(home / "runner")
        jobs = Jobs(store, settings, queue=Queue(store, runner, settings).waiting)
        for workers in (1, 2, 1, 1):
            told(jobs, workers=workers)
        fresh = Jobs(store, settings, queue=Queue(store, runner, settings).waiting)
        newest = jobs.submit(ADMIN, run_spec(), priority=priority).job
        assert jobs.view(newest)["status"]["queue"] == fresh.view(newest)["status"]["queue"]


def test_who_is_slow_admits_no_more_when_half_its_turn_is_over(home: Path) -> None:
    """After the whole of it, another replica may count anew what is free."""
    settings = lab_settings(home, capacity_cpus=2, reconcile_period_s=1)

    class Slow(JobStore):
        answers_at = float("inf")

        def move(self, *words: Any, **more: Any) -> Job:
            self.answers_at = min(self.answers_at, time.monotonic() + 0.5 * LEASE_PERIODS)
            wait_for(lambda: time.monotonic() > self.answers_at, "a slow database")
            return super().move(*words, **more)

    with open_store(settings.database) as plain:
        jobs = Jobs(plain, settings)
        for n in range(3):
            jobs.submit(ADMIN, run_spec(str(n), compute={"cpus_per_worker": 0.5}))
        store = Slow(settings.database)
        queue = Queue(store, LocalRunner(home / "runner"), settings)
        seen = queue.admit(queue.unfinished())
        assert [job.state for job in seen] == ["STARTING", "QUEUED", "QUEUED"]
        seen = queue.admit(queue.unfinished())
        assert [job.state for job in seen] == ["STARTING"] * 3
        store.close()
