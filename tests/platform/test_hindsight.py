from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from stoplab_platform.admission import Resources
from stoplab_platform.estimates import START_S, estimate
from stoplab_platform.hindsight import beside, spent
from stoplab_platform.jobs.models import Event, Job
from stoplab_platform.jobs.states import State
from stoplab_platform.ledger import Cell, CellState
from stoplab_platform.rates import Measured
from stoplab_platform.specs import AnySpec, parse_spec
from support_runs import TINY, tiny

START = datetime(2026, 11, 23, 9, tzinfo=UTC)
MOVES = (
    (State.QUEUED, 0),
    (State.STARTING, 100),
    (State.RUNNING, 110),
    (State.STOPPING, 120),
    (State.PAUSED, 125),
    (State.QUEUED, 500),
    (State.STARTING, 510),
    (State.RUNNING, 520),
    (State.SUCCEEDED, 541),
)
HISTORY = [
    Event(n, "j_1", START + timedelta(seconds=at), "x", "move", None, state, None, None)
    for n, (state, at) in enumerate(MOVES)
]
KNOWN = Measured("j_0/run", tiny(), 1000.0, 27.568 - START_S.value, 1216)
COMPARE = {
    "kind": "compare",
    "name": "x",
    "base": TINY,
    "arms": {"a": {}, "b": {}},
    "seeds": [0, 1],
    "primary": {"metric": "test/knn_top1"},
}


def job(spec: AnySpec, state: State = State.SUCCEEDED) -> Job:
    return Job(
        id="j_1", kind=spec.kind, name="x", project="default", owner="ana", labels={}, priority=0,
        spec=spec.plain(), spec_digest="", run_digest=None, retry_of=None, extends=None, limits={},
        version=1, attempt=2, state=state, intent=None, reason_code=None, message=None,
        created_at=START, started_at=HISTORY[2].at, finished_at=HISTORY[-1].at, settled=True,
        hidden=False,
    )  # fmt: skip


def cell(number: int, seconds: float, **changes: Any) -> Cell:
    return Cell(
        id=f"c{number}", index=number, seed=0, state=CellState.SUCCEEDED, ran_s=seconds, **changes
    )


def test_waiting_and_pauses_are_not_counted() -> None:
    spec = tiny(compute__cpus_per_worker=2)
    found = spent(job(spec), spec, HISTORY, [])
    assert found.wall_hours == pytest.approx((15 + 21) / 3600)
    assert (found.cpu_hours, found.gpu_hours) == (pytest.approx(72 / 3600), 0)


def test_a_study_took_what_its_runs_took() -> None:
    spec = parse_spec({**COMPARE, "base": {**TINY, "compute": {"gpus_per_worker": 1}}})
    cells = [cell(0, 10), cell(1, 20), cell(2, 1000, adopted=True)]
    found = spent(job(spec), spec, HISTORY, cells)
    assert found.gpu_hours == found.cpu_hours == pytest.approx(30 / 3600)
    assert found.wall_hours == pytest.approx(36 / 3600)


def test_the_error_is_measured_over_estimated() -> None:
    spec = tiny()
    told = beside(job(spec), spec, estimate(spec, Resources(2, 0), [KNOWN]), HISTORY, [])
    assert told["estimate"]["wall_hours"]["value"] == pytest.approx(30 / 3600)
    assert told["error"]["wall_hours"] == pytest.approx(0.2)
    assert told["error"]["gpu_hours"] is None
    assert told["within"] == {"gpu_hours": True, "cpu_hours": True, "wall_hours": True}
    assert told["reason"] is None


def test_what_cannot_be_compared_says_why() -> None:
    spec = tiny()
    guess = estimate(spec, Resources(2, 0), [KNOWN])
    running = beside(job(spec, State.RUNNING), spec, guess, HISTORY, [])
    assert running["measured"] is None
    assert "RUNNING" in running["reason"]
    adopted = beside(job(spec), spec, guess, HISTORY, [cell(0, 1), cell(1, 1, adopted=True)])
    assert adopted["measured"] is not None
    assert adopted["error"] is None
    assert "1 of 2 runs were adopted" in adopted["reason"]
    remote = tiny(data__train="s3://b/a.tar", evals=[])
    blind = beside(job(remote), remote, estimate(remote, Resources(2, 0)), HISTORY, [])
    assert blind["reason"] == "no hours were estimated"
