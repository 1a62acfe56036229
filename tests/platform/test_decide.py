"""What is done about a job, by what is seen of it: the pure part of the reconciler."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from stoplab_platform.decide import (
    Action,
    AskStop,
    Kill,
    Move,
    Patience,
    Seen,
    Start,
    Tell,
    Wait,
    decide,
)
from stoplab_platform.handoff import Result
from stoplab_platform.jobs.models import Intent, Job
from stoplab_platform.jobs.states import MOVES, ReasonCode, State
from stoplab_platform.runner.base import Observed, RunnerState
from stoplab_platform.usage import Exceeded

NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB = Job(
    id="j_1", kind="pretrain", name="n", project="p", owner="o", labels={}, priority=0, spec={},
    spec_digest="", run_digest=None, retry_of=None, extends=None, limits={}, version=1,
    attempt=1, state=State.RUNNING, intent=None, reason_code=None, message="asked", created_at=NOW,
    started_at=None, finished_at=None, settled=False, hidden=False,
)  # fmt: skip
PATIENCE = Patience()


def job(state: str, intent: str | None = None, reason: str | None = None) -> Job:
    code = None if reason is None else ReasonCode(reason)
    if intent is None:
        return replace(JOB, state=State(state), reason_code=code)
    return replace(
        JOB, state=State(state), intent=Intent(intent), reason_code=code or ReasonCode.USER_REQUEST
    )


def says(state: str, message: str | None = None) -> Observed:
    return Observed(RunnerState(state), message)


def result(outcome: Any, reason: str | None = None, message: str | None = None) -> Result:
    code = None if reason is None else ReasonCode(reason)
    return Result(
        attempt=1, exit_code=0, outcome=outcome, reason_code=code, message=message,
        run_digest="d" if outcome == "SUCCEEDED" else None, finished_at=NOW,
    )  # fmt: skip


def actions(job: Job, **seen: Any) -> list[Action]:
    found = decide(job, Seen(**seen), PATIENCE)
    for action in found:
        if isinstance(action, Move):
            assert action.to in MOVES[job.state], (job.state, action)
    return found


def moves(job: Job, **seen: Any) -> list[tuple[State, ReasonCode | None]]:
    found = actions(job, **seen)
    return [(action.to, action.reason_code) for action in found if isinstance(action, Move)]


@pytest.mark.parametrize("state", ["STARTING", "RECOVERING"])
class TestStarting:
    def test_is_handed_over_once_the_runner_knows_nothing_of_it(self, state: str) -> None:
        assert actions(job(state), runner=says("ABSENT")) == [Start()]

    def test_an_attempt_that_was_handed_over_is_adopted(self, state: str) -> None:
        for word in ("PENDING", "RUNNING"):
            assert actions(job(state), runner=says(word)) == []

    def test_waits_for_a_cluster_that_is_away(self, state: str) -> None:
        (wait,) = actions(job(state), runner=None, waited_s=9999)
        assert isinstance(wait, Wait)

    def test_runs_at_the_first_heartbeat(self, state: str) -> None:
        assert moves(job(state), beating=True) == [(State.RUNNING, None)]

    def test_may_end_before_its_heartbeat_was_seen(self, state: str) -> None:
        done = moves(job(state), result=result("SUCCEEDED"))
        assert done == [(State.RUNNING, None), (State.SUCCEEDED, None)]
        killed = moves(job(state), result=result("FAILED", "OOM"))
        assert killed == [(State.RUNNING, None), (State.RECOVERING, ReasonCode.OOM)]

    def test_never_came_to_life(self, state: str) -> None:
        dead = says("FAILED", "no such image")
        assert actions(job(state), runner=dead, waited_s=11, told_s=9) == []
        (move,) = actions(job(state), runner=dead, told_s=11)
        assert isinstance(move, Move)
        assert (move.to, move.reason_code) == (State.RECOVERING, ReasonCode.START_FAILED)
        assert move.next_attempt
        assert "no such image" in str(move.message)
        assert str(move.message).endswith("attempt 2 starts in 5 s")

    def test_hangs_in_the_cluster(self, state: str) -> None:
        assert actions(job(state), runner=says("RUNNING"), told_s=119) == []
        kill, move = actions(job(state), runner=says("RUNNING"), told_s=121)
        assert isinstance(kill, Kill)
        assert isinstance(move, Move)
        assert (move.to, move.reason_code) == (State.RECOVERING, ReasonCode.START_FAILED)

    def test_waits_for_room_in_the_cluster_and_says_so(self, state: str) -> None:
        assert actions(job(state), runner=says("PENDING"), waited_s=9) == []
        for waited_s in (11, 23 * 3600):
            (wait,) = actions(job(state), runner=says("PENDING", "no GPU"), waited_s=waited_s)
            assert isinstance(wait, Wait)
            assert "no room" in wait.why
            assert "no GPU" in wait.why

    def test_waits_so_long_for_room_and_no_longer(self, state: str) -> None:
        kill, move = actions(job(state), runner=says("PENDING"), waited_s=25 * 3600)
        assert isinstance(kill, Kill)
        assert isinstance(move, Move)
        assert (move.to, move.reason_code) == (State.FAILED, ReasonCode.START_FAILED)
        assert "24 h" in str(move.message)
        assert "STOPLAB_ROOM_HOURS" in str(move.message)


class TestBackOff:
    @pytest.mark.parametrize(
        ("reason", "failures", "pause_s"),
        [
            ("WORKER_ERROR", 1, 1),
            ("WORKER_ERROR", 2, 2),
            ("WORKER_ERROR", 3, 4),
            ("WORKER_ERROR", 20, 30),
            ("DISK_FULL", 1, 60),
            ("PREEMPTED", 2, 10),
            ("PREEMPTED", 999, 300),
        ],
    )
    def test_grows_with_failures_of_a_kind(
        self, reason: str, failures: int, pause_s: float
    ) -> None:
        recovering = job("RECOVERING", reason=reason)
        counts = {ReasonCode(reason): failures, ReasonCode.HEARTBEAT_LOST: 7}
        seen = {"runner": says("ABSENT"), "recoveries": counts}
        assert actions(recovering, waited_s=pause_s - 0.1, **seen) == []
        assert actions(recovering, waited_s=pause_s + 0.1, **seen) == [Start()]

    def test_a_job_that_comes_back_from_a_pause_starts_at_once(self) -> None:
        seen = {"runner": says("ABSENT"), "recoveries": {ReasonCode.OOM: 3}}
        assert actions(job("STARTING"), **seen) == [Start()]


class TestRunning:
    RUNNING = job("RUNNING")

    def test_nothing_to_do(self) -> None:
        assert actions(self.RUNNING, beating=True) == []
        assert actions(self.RUNNING, beating=True, quiet_s=30, runner=says("RUNNING")) == []

    def test_what_a_run_says_is_told_while_it_goes_on(self) -> None:
        assert actions(self.RUNNING, beating=True, news="2 workers") == [Tell("2 workers")]
        assert Tell("2 workers") not in actions(
            self.RUNNING, beating=True, news="2 workers", result=result("SUCCEEDED")
        )

    @pytest.mark.parametrize("word", ["SUCCEEDED", "FAILED", "STOPPED", "ABSENT"])
    def test_the_runners_word_alone_ends_nothing(self, word: str) -> None:
        assert actions(self.RUNNING, beating=True, quiet_s=9, runner=says(word)) == []

    @pytest.mark.parametrize(
        ("word", "reason"),
        [
            ("FAILED", ReasonCode.WORKER_ERROR),
            ("SUCCEEDED", ReasonCode.WORKER_ERROR),
            ("ABSENT", ReasonCode.NODE_LOST),
        ],
    )
    def test_gone_and_quiet_recovers(self, word: str, reason: ReasonCode) -> None:
        found = actions(self.RUNNING, beating=True, quiet_s=11, runner=says(word))
        kill, move = found
        assert isinstance(kill, Kill)
        assert isinstance(move, Move)
        assert (move.to, move.reason_code, move.next_attempt) == (State.RECOVERING, reason, True)

    @pytest.mark.parametrize("word", [None, says("RUNNING"), says("PENDING")])
    def test_silent_for_long_recovers_whatever_the_runner_says(self, word: Observed | None) -> None:
        found = moves(self.RUNNING, beating=True, quiet_s=61, runner=word)
        assert found == [(State.RECOVERING, ReasonCode.HEARTBEAT_LOST)]

    @pytest.mark.parametrize(
        ("word", "reason"),
        [
            ("the actor's node was preempted: spot", "PREEMPTED"),
            ("The actor died because its node has died. Node Id: 1", "NODE_LOST"),
            ("2 worker(s) were killed due to the node running low on memory.", "OOM"),
        ],
    )
    def test_the_runners_word_tells_why(self, word: str, reason: str) -> None:
        found = moves(self.RUNNING, beating=True, quiet_s=11, runner=says("FAILED", word))
        assert found == [(State.RECOVERING, ReasonCode(reason))]


class TestLimits:
    GONE = Exceeded(ReasonCode.TIME_LIMIT, "limits.wall_hours is 1")

    def test_asks_it_to_stop(self) -> None:
        move, ask = actions(job("RUNNING"), beating=True, exceeded=self.GONE)
        assert move == Move(
            State.STOPPING, ReasonCode.TIME_LIMIT, "limits.wall_hours is 1", intent=Intent.FAILED
        )
        assert ask == AskStop()

    def test_fails_with_the_reason(self) -> None:
        stopping = job("STOPPING", "FAILED", "TIME_LIMIT")
        for how in (result("STOPPED", "USER_REQUEST"), result("FAILED", "WORKER_ERROR")):
            (move,) = actions(stopping, result=how)
            assert move == Move(State.FAILED, ReasonCode.TIME_LIMIT, "asked")
        assert moves(stopping, result=result("SUCCEEDED")) == [(State.SUCCEEDED, None)]

    def test_has_the_grace_of_a_pause(self) -> None:
        seen: dict[str, Any] = {"beating": True, "runner": says("RUNNING"), "stop_asked": True}
        stopping = job("STOPPING", "FAILED", "BUDGET")
        assert actions(stopping, waited_s=62, **seen) == []
        assert isinstance(actions(stopping, waited_s=64, **seen)[0], Kill)


class TestResults:
    def test_success_carries_the_digest(self) -> None:
        (move,) = actions(job("RUNNING"), result=result("SUCCEEDED"))
        assert move == Move(State.SUCCEEDED, run_digest="d")

    def test_the_result_beats_the_runners_word(self) -> None:
        found = moves(job("RUNNING"), result=result("SUCCEEDED"), runner=says("FAILED"), quiet_s=99)
        assert found == [(State.SUCCEEDED, None)]

    @pytest.mark.parametrize(
        "reason", ["BAD_INPUT", "RUN_ERROR", "DIVERGED", "DATA_MISSING", "COLLAPSED"]
    )
    def test_what_would_repeat_itself_fails_at_once(self, reason: str) -> None:
        (move,) = actions(job("RUNNING"), result=result("FAILED", reason, "why"))
        assert move == Move(State.FAILED, ReasonCode(reason), "why")

    @pytest.mark.parametrize(
        ("reason", "wait_s"),
        [("WORKER_ERROR", 1), ("OOM", 10), ("PREEMPTED", 5), ("GPU_OOM", 30), ("DISK_FULL", 60)],
    )
    def test_kills_recover(self, reason: str, wait_s: float) -> None:
        (move,) = actions(job("RUNNING"), result=result("FAILED", reason, "why"))
        message = f"why; attempt 2 starts in {wait_s} s"
        assert move == Move(State.RECOVERING, ReasonCode(reason), message, next_attempt=True)

    @pytest.mark.parametrize(
        ("said", "reason"),
        [
            ("USER_REQUEST", "PREEMPTED"),
            ("PREEMPTED", "PREEMPTED"),
            ("HEARTBEAT_LOST", "HEARTBEAT_LOST"),  # its supervisor ended it, and it saved
        ],
    )
    def test_a_stop_that_nobody_asked_for(self, said: str, reason: str) -> None:
        found = moves(job("RUNNING"), result=result("STOPPED", said))
        assert found == [(State.RECOVERING, ReasonCode(reason))]


class TestBudget:
    def test_runs_out(self) -> None:
        seen = {"result": result("FAILED", "OOM", "big"), "max_failures": 2}
        used = {ReasonCode.OOM: 2, ReasonCode.WORKER_ERROR: 1}
        (move,) = actions(job("RUNNING"), recoveries=used, **seen)
        assert isinstance(move, Move)
        assert (move.to, move.reason_code) == (State.FAILED, ReasonCode.RETRIES_EXHAUSTED)
        assert "OOM" in str(move.message)
        assert "big" in str(move.message)

    def test_each_kind_has_its_own(self) -> None:
        used = {ReasonCode.NODE_LOST: 2, ReasonCode.WORKER_ERROR: 2}
        found = moves(
            job("RUNNING"), result=result("FAILED", "OOM"), recoveries=used, max_failures=2
        )
        assert found == [(State.RECOVERING, ReasonCode.OOM)]

    @pytest.mark.parametrize("reason", ["OOM", "PREEMPTED", "GPU_OOM"])
    def test_none_at_all(self, reason: str) -> None:
        found = moves(job("RUNNING"), result=result("FAILED", reason), max_failures=0)
        assert found == [(State.FAILED, ReasonCode.RETRIES_EXHAUSTED)]

    def test_preemptions_are_the_clusters_will(self) -> None:
        used = {ReasonCode.PREEMPTED: 99}
        found = moves(job("RUNNING"), result=result("FAILED", "PREEMPTED"), recoveries=used)
        assert found == [(State.RECOVERING, ReasonCode.PREEMPTED)]

    def test_a_full_gpu_is_tried_once_more(self) -> None:
        used = {ReasonCode.GPU_OOM: 1}
        found = moves(job("RUNNING"), result=result("FAILED", "GPU_OOM"), recoveries=used)
        assert found == [(State.FAILED, ReasonCode.RETRIES_EXHAUSTED)]


class TestStopping:
    CANCEL, PAUSE = job("STOPPING", "CANCELLED"), job("STOPPING", "PAUSED")
    ALIVE = {"beating": True, "runner": says("RUNNING")}

    def test_asks_once(self) -> None:
        assert actions(self.CANCEL, **self.ALIVE) == [AskStop()]
        assert actions(self.CANCEL, stop_asked=True, **self.ALIVE) == []

    @pytest.mark.parametrize(
        ("outcome", "reason"), [("STOPPED", "USER_REQUEST"), ("FAILED", "WORKER_ERROR")]
    )
    def test_ends_as_intended(self, outcome: str, reason: str) -> None:
        how = result(outcome, reason)
        asked = ReasonCode.USER_REQUEST
        assert moves(self.CANCEL, result=how) == [(State.CANCELLED, asked)]
        assert moves(self.PAUSE, result=how) == [(State.PAUSED, asked)]

    def test_other_ends_that_came_first(self) -> None:
        assert moves(self.PAUSE, result=result("SUCCEEDED")) == [(State.SUCCEEDED, None)]
        broken = result("FAILED", "RUN_ERROR")
        assert moves(self.PAUSE, result=broken) == [(State.FAILED, ReasonCode.RUN_ERROR)]
        assert moves(self.CANCEL, result=broken)[0][0] is State.CANCELLED

    @pytest.mark.parametrize(("stopping", "grace_s"), [(CANCEL, 5), (PAUSE, 60)])
    def test_is_killed_after_the_grace(self, stopping: Job, grace_s: float) -> None:
        seen = {**self.ALIVE, "stop_asked": True}
        assert actions(stopping, waited_s=grace_s + 2, **seen) == []
        (kill,) = actions(stopping, waited_s=grace_s + 4, **seen)
        assert isinstance(kill, Kill)

    def test_never_began(self) -> None:
        kill, end = actions(self.CANCEL, stop_asked=True, runner=says("ABSENT"))
        assert isinstance(kill, Kill)
        assert isinstance(end, Move)

    def test_a_wrong_word_frees_nothing(self) -> None:
        seen: dict[str, Any] = {"stop_asked": True, "beating": True, "runner": says("FAILED")}
        (kill,) = actions(self.CANCEL, quiet_s=1, **seen)
        assert isinstance(kill, Kill)
        assert moves(self.CANCEL, quiet_s=3, **seen)[0][0] is State.CANCELLED

    def test_ends_though_the_cluster_is_away(self) -> None:
        seen: dict[str, Any] = {"stop_asked": True, "beating": True, "runner": None}
        assert moves(self.CANCEL, waited_s=60, quiet_s=1, **seen) == []
        assert moves(self.CANCEL, waited_s=60, quiet_s=11, **seen)[0][0] is State.CANCELLED

    @pytest.mark.parametrize("word", ["RUNNING", "PENDING"])
    def test_ends_what_is_silent_for_long_whatever_the_runner_says(self, word: str) -> None:
        seen: dict[str, Any] = {"stop_asked": True, "beating": True, "runner": says(word)}
        assert moves(self.CANCEL, waited_s=86400, quiet_s=59, **seen) == []
        kill, end = actions(self.CANCEL, waited_s=86400, quiet_s=61, **seen)
        assert isinstance(kill, Kill)
        assert isinstance(end, Move)
        assert end.to is State.CANCELLED
