"""Time and GPU-hours of jobs that really run."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoplab_platform import settle
from stoplab_platform.errors import SpecError
from stoplab_platform.handoff import read_stop
from stoplab_platform.jobs.models import Intent
from stoplab_platform.jobs.states import ReasonCode, State
from stoplab_platform.specs import parse_spec
from support_jobs import Lab, running_lab, trainer
from support_store import ADMIN, compare_spec, run_spec, wait_for

SECOND = 1 / 3600
TOLD: list[tuple[str, str]] = []


@pytest.fixture(autouse=True)
def _told(monkeypatch: pytest.MonkeyPatch) -> None:
    TOLD.clear()
    monkeypatch.setattr(
        settle.tracking, "finish_runs", lambda _, job_id, status: TOLD.append((job_id, status))
    )


def limit(lab: Lab, job_id: str, **limits: float | None) -> None:
    job = lab.store.get(job_id)
    lab.jobs.edit(ADMIN, job_id, job.version, limits=limits)


class TestTime:
    def test_the_run_saves_and_fails(self, home: Path) -> None:
        with running_lab(home, trainer(9999)) as lab:
            job = lab.submit(limits={"wall_hours": SECOND})
            failed = lab.wait(job, State.FAILED)
            assert failed.reason_code is ReasonCode.TIME_LIMIT
            assert "limits.wall_hours is 0.000277" in str(failed.message)
            assert lab.states(job) == ["QUEUED", "STARTING", "RUNNING", "STOPPING", "FAILED"]
            assert "saved" in lab.log(job)
            order = read_stop(lab.folder(job), 1)
            assert order is not None
            assert (order.intent, order.deadline_s) == (Intent.FAILED, 60)
            wait_for(lambda: TOLD, "the tracker to know")
            assert (job.id, "FAILED") in TOLD

    def test_a_retry_with_more(self, home: Path) -> None:
        with running_lab(home, trainer(60)) as lab:
            job = lab.submit(limits={"wall_hours": 0.3 * SECOND})
            lab.wait(job, State.FAILED)
            again = lab.jobs.retry(ADMIN, job.id, limits={"wall_hours": 1}).job
            assert again.spec["limits"] == {"wall_hours": 1, "gpu_hours": None}
            lab.wait(again, State.SUCCEEDED)

    def test_a_change_while_it_runs(self, home: Path) -> None:
        with running_lab(home, trainer(9999)) as lab:
            job = lab.submit(limits={"wall_hours": 1})
            lab.wait(job, State.RUNNING)
            limit(lab, job.id, wall_hours=0.2 * SECOND)
            assert lab.wait(job, State.FAILED).reason_code is ReasonCode.TIME_LIMIT

    def test_a_limit_that_is_lifted_in_time(self, home: Path) -> None:
        with running_lab(home, trainer(100)) as lab:
            job = lab.submit(limits={"wall_hours": 1.5 * SECOND})
            lab.wait(job, State.RUNNING)
            limit(lab, job.id, wall_hours=None)
            lab.wait(job, State.SUCCEEDED)

    def test_a_pause_is_not_counted(self, home: Path) -> None:
        with running_lab(home, trainer(40)) as lab:
            job = lab.submit(limits={"wall_hours": 8 * SECOND})
            lab.wait(job, State.RUNNING)
            lab.jobs.pause(ADMIN, job.id)
            lab.wait(job, State.PAUSED)
            seconds = [event.at for event in lab.store.history(job.id)]
            ran = seconds[3] - seconds[2]
            limit(lab, job.id, wall_hours=(ran.total_seconds() + 3) * SECOND)
            lab.jobs.resume(ADMIN, job.id)
            lab.wait(job, State.SUCCEEDED)

    def test_the_deaf_are_killed(self, home: Path) -> None:
        with running_lab(home, trainer(9999)) as lab:
            job = lab.submit(limits={"wall_hours": SECOND})
            lab.wait(job, State.STOPPING)
            lab.jobs.cancel(ADMIN, job.id)  # somebody does not want to wait for the grace
            assert lab.wait(job, State.CANCELLED).reason_code is ReasonCode.USER_REQUEST


class TestBudget:
    def test_gpu_hours(self, home: Path) -> None:
        with running_lab(home, trainer(9999), capacity_gpus=4) as lab:
            free = lab.submit("free", limits={"gpu_hours": SECOND})
            job = lab.submit(compute={"gpus_per_worker": 1}, limits={"gpu_hours": SECOND})
            failed = lab.wait(job, State.FAILED)
            assert failed.reason_code is ReasonCode.BUDGET
            assert lab.job(free).state is State.RUNNING

    def test_a_study_that_its_driver_does_not_end(self, home: Path) -> None:
        with running_lab(home, trainer(9999)) as lab:
            spec = compare_spec(limits={"wall_hours": 0.5 * SECOND})
            job = lab.jobs.submit(ADMIN, spec).job
            assert lab.wait(job, State.FAILED).reason_code is ReasonCode.TIME_LIMIT


class TestSpec:
    def test_limits_are_weightless(self) -> None:
        plain, limited = run_spec(), run_spec(limits={"wall_hours": 2})
        assert plain.run_digest({}) == limited.run_digest({})  # type: ignore[union-attr]
        assert plain.digest() != limited.digest()

    @pytest.mark.parametrize("kind", ["sweep", "compare"])
    def test_a_study_has_its_own(self, kind: str) -> None:
        base = {**run_spec("base").plain(), "limits": {"wall_hours": 2}}
        space = {"space": {"limits.wall_hours": {"grid": [1]}}}
        arms = {"arms": {"a": {}, "b": {"limits.gpu_hours": 3}}}
        study = {"kind": kind, "name": "s", "base": base, **(space if kind == "sweep" else arms)}
        with pytest.raises(SpecError) as caught:
            parse_spec(study)
        found = {problem.dotted: problem.message for problem in caught.value.problems}
        changed = "space.limits.wall_hours" if kind == "sweep" else "arms.b.limits.gpu_hours"
        assert found.keys() == {"base.limits", changed}
        assert all("set the study's `limits`" in message for message in found.values())

    def test_a_run_has_hours_only(self, home: Path) -> None:
        with pytest.raises(SpecError, match=r"limits\.trials: unknown field"):
            run_spec(limits={"trials": 3})
