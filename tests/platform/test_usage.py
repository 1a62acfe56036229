"""What a job has used of its limits."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from stoplab_platform.jobs.models import Event, Job
from stoplab_platform.jobs.states import ReasonCode, State
from stoplab_platform.usage import exceeded, has_limits, ran_hours

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
JOB = Job(
    id="j_1", kind="pretrain", name="n", project="p", owner="o", labels={}, priority=0, spec={},
    spec_digest="", run_digest=None, retry_of=None, extends=None, limits={}, version=1,
    attempt=1, state=State.RUNNING, intent=None, reason_code=None, message=None, created_at=BEGAN,
    started_at=None, finished_at=None, settled=False, hidden=False,
)  # fmt: skip
LIFE = (
    ("QUEUED", 0), ("STARTING", 1), ("RUNNING", 2), ("RECOVERING", 5), ("RUNNING", 6),
    ("STOPPING", 8), ("PAUSED", 9), ("QUEUED", 20), ("STARTING", 30), ("RUNNING", 31),
)  # fmt: skip
"""States and the hours at which they began: 5 h of running, and what runs since 31."""


def history(*moves: tuple[str, float]) -> list[Event]:
    return [
        Event(n, "j_1", at(hour), "x", "move", None, State(state), None, None)
        for n, (state, hour) in enumerate(moves)
    ]


def at(hour: float) -> datetime:
    return BEGAN + timedelta(hours=hour)


def limited(kind: str = "pretrain", changed: dict[str, Any] | None = None, **limits: Any) -> Job:
    return replace(JOB, kind=kind, spec={"limits": limits}, limits=changed or {})


def test_only_running_counts() -> None:
    assert ran_hours(history(*LIFE), at(31.5)) == pytest.approx(5.5)
    assert ran_hours(history(*LIFE[:5]), at(7)) == pytest.approx(4)
    assert ran_hours(history(*LIFE[:2]), at(99)) == 0


def test_hours_on_the_clock() -> None:
    job = limited(wall_hours=5.5)
    assert exceeded(job, history(*LIFE), 0, at(31.4)) is None
    found = exceeded(job, history(*LIFE), 0, at(31.6))
    assert found is not None
    assert found.code is ReasonCode.TIME_LIMIT
    assert "limits.wall_hours is 5.5" in found.message
    assert "used 5.6 h" in found.message
    assert "retry goes on from its last checkpoint" in found.message


def test_gpu_hours_are_those_of_the_reservation() -> None:
    job = limited(gpu_hours=20)
    assert exceeded(job, history(*LIFE), 3, at(32)) is None
    found = exceeded(job, history(*LIFE), 4, at(31.1))
    assert found is not None
    assert found.code is ReasonCode.BUDGET
    assert "GPU-hours" in found.message
    assert exceeded(job, history(*LIFE), 0, at(999)) is None


def test_a_study_has_its_driver_first() -> None:
    job = limited("sweep", wall_hours=5)
    assert exceeded(job, history(*LIFE), 0, at(35)) is None
    found = exceeded(job, history(*LIFE), 0, at(36.1))
    assert found is not None
    assert "adopts its finished runs" in found.message


def test_a_change_counts() -> None:
    raised = limited(changed={"wall_hours": 50}, wall_hours=1)
    lifted = limited(changed={"wall_hours": None}, wall_hours=1)
    assert exceeded(raised, history(*LIFE), 0, at(32)) is None
    assert exceeded(lifted, history(*LIFE), 0, at(9999)) is None
    assert (has_limits(raised), has_limits(lifted)) == (True, False)
    assert not has_limits(JOB)
