"""What to do about a job, given what is seen of it: pure functions, no clock, no files.

Times are the observer's: a fresh observer has seen nothing yet, so it watches before it judges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from stoplab_platform.failures import LASTING, back_off_s, budget, cause_in, explained
from stoplab_platform.handoff import GRACE_S, Result
from stoplab_platform.jobs.models import Intent, Job
from stoplab_platform.jobs.states import ReasonCode, State
from stoplab_platform.runner.base import Observed, RunnerState
from stoplab_platform.usage import Exceeded


@dataclass(frozen=True)
class Patience:
    """How long things may take (seconds)."""

    quiet_s: float = 10
    """No heartbeat, and the runner says that the attempt is over: it is."""
    silent_s: float = 60
    """No heartbeat, whatever the runner says."""
    start_s: float = 120
    """From the moment the runner says that it runs to the first heartbeat."""
    room_s: float = 24 * 3600
    """In a cluster that has no room for it yet, or grows."""
    back_off: float = 1
    """What the waits of `failures.TABLE` are multiplied by."""
    kill_s: float = 3
    """After the grace, for the supervisor's own ladder (SIGTERM, SIGKILL, result)."""
    still_s: float = 2.5
    """No heartbeat for so long means that a stopped supervisor is gone."""


@dataclass(frozen=True)
class Seen:
    """What an observer knows of a job's present attempt."""

    waited_s: float = 0
    """Since the observer first saw this state."""
    told_s: float = 0
    """The same, or since the runner last had no answer or no room for it if that is less."""
    beating: bool = False
    """Whether the attempt has a heartbeat."""
    quiet_s: float = 0
    """Since the observer last saw the heartbeat change."""
    result: Result | None = None
    runner: Observed | None = None
    """The runner's word; None: it does not answer."""
    stop_asked: bool = False
    """Whether the stop file holds the present intent."""
    recoveries: Mapping[ReasonCode, int] = field(default_factory=dict)
    max_failures: int = 3
    exceeded: Exceeded | None = None
    """The limit that the job has used up, if it has."""
    news: str | None = None
    """What the run last told of itself."""

    @property
    def over(self) -> bool:
        """Whether the runner says that nothing of the attempt lives."""
        return self.runner is not None and self.runner.state.over


@dataclass(frozen=True)
class Move:
    """To another state."""

    to: State
    reason_code: ReasonCode | None = None
    message: str | None = None
    next_attempt: bool = False
    run_digest: str | None = None
    intent: Intent | None = None


@dataclass(frozen=True)
class Start:
    """Hand the attempt to the runner."""


@dataclass(frozen=True)
class AskStop:
    """Write the stop file."""


@dataclass(frozen=True)
class Kill:
    """Have the runner stop the attempt, and take the folder from it."""

    why: str


@dataclass(frozen=True)
class Wait:
    """Nothing can be done now; people are told why."""

    why: str


@dataclass(frozen=True)
class Tell:
    """It goes on, and people are told how."""

    what: str


Action = Move | Start | AskStop | Kill | Wait | Tell

ENDS = {
    Intent.CANCELLED: State.CANCELLED,
    Intent.PAUSED: State.PAUSED,
    Intent.FAILED: State.FAILED,
}
"""Where a STOPPING job goes."""


def decide(job: Job, seen: Seen, patience: Patience) -> list[Action]:
    """The actions for a job that is STARTING, RECOVERING, RUNNING or STOPPING, in order."""
    if job.state is State.STOPPING:
        return list(_stopping(job, seen, patience))
    if seen.result is not None:
        # It ran, though no pass of ours fell into that time.
        began = [] if job.state is State.RUNNING else [Move(State.RUNNING)]
        return [*began, *_ended(job, seen, patience, seen.result)]
    if job.state is State.RUNNING:
        return list(_running(job, seen, patience))
    return list(_starting(job, seen, patience))


def recover(
    job: Job,
    seen: Seen,
    patience: Patience,
    reason: ReasonCode,
    said: str | None,
    *,
    explain: bool = True,
) -> Move:
    """The next attempt, while the budget of this kind of failures lasts."""
    message = explained(reason, said) if explain else said
    used = seen.recoveries.get(reason, 0)
    if used < budget(reason, seen.max_failures):
        wait_s = patience.back_off * back_off_s(reason, used + 1)
        follows = f"attempt {job.attempt + 1} starts in {wait_s:g} s"
        message = f"{message}; {follows}" if message else follows
        return Move(State.RECOVERING, reason, message, next_attempt=True)
    again = f"{reason} once more after {used} restarts: {message}"
    return Move(State.FAILED, ReasonCode.RETRIES_EXHAUSTED, again)


def _starting(job: Job, seen: Seen, patience: Patience) -> Iterator[Action]:
    if seen.beating:
        yield Move(State.RUNNING)
    elif seen.runner is None:
        yield Wait("the cluster does not answer; the attempt starts when it does")
    elif seen.waited_s < _pause_s(job, seen, patience):
        return
    elif seen.runner.state is RunnerState.ABSENT:
        yield Start()
    elif seen.runner.state is RunnerState.PENDING:
        yield from _without_room(seen, patience, seen.runner.message)
    elif seen.over and seen.told_s > patience.quiet_s:
        yield recover(job, seen, patience, ReasonCode.START_FAILED, seen.runner.message)
    elif seen.told_s > patience.start_s:
        yield Kill(f"no heartbeat {patience.start_s:g} s after its start")
        yield recover(job, seen, patience, ReasonCode.START_FAILED, seen.runner.message)


def _without_room(seen: Seen, patience: Patience, said: str | None) -> Iterator[Action]:
    """Taken, and not begun: to kill it would take the cluster its reason to grow."""
    if seen.waited_s > patience.room_s:
        told = f"the cluster had no room for it in {patience.room_s / 3600:g} h"
        yield Kill(told)
        longest = "as long as an attempt may wait (STOPLAB_ROOM_HOURS)"
        yield Move(State.FAILED, ReasonCode.START_FAILED, f"{told}, {longest}")
    elif seen.waited_s > patience.quiet_s:
        yield Wait(f"the cluster has no room for it yet{f' ({said})' if said else ''}")


def _pause_s(job: Job, seen: Seen, patience: Patience) -> float:
    """How long a job that is RECOVERING waits before its next attempt."""
    if job.state is not State.RECOVERING or job.reason_code is None:
        return 0
    failures = seen.recoveries.get(job.reason_code, 1)
    return patience.back_off * back_off_s(job.reason_code, failures)


def _running(job: Job, seen: Seen, patience: Patience) -> Iterator[Action]:
    if seen.over and seen.quiet_s > patience.quiet_s:
        assert seen.runner is not None
        told = seen.runner.message or "the runner says that it is over"
        lost = seen.runner.state is RunnerState.ABSENT
        reason = ReasonCode.NODE_LOST if lost else cause_in(told) or ReasonCode.WORKER_ERROR
        yield Kill("no heartbeat, no result")
        yield recover(job, seen, patience, reason, f"ended without a result: {told}")
    elif seen.quiet_s > patience.silent_s:
        said = f"no heartbeat for {patience.silent_s:g} s"
        yield Kill(said)
        yield recover(job, seen, patience, ReasonCode.HEARTBEAT_LOST, said)
    elif seen.exceeded is not None:
        code, message = seen.exceeded.code, seen.exceeded.message
        yield Move(State.STOPPING, code, message, intent=Intent.FAILED)
        yield AskStop()
    elif seen.news is not None:
        yield Tell(seen.news)


def _ended(job: Job, seen: Seen, patience: Patience, result: Result) -> Iterator[Action]:
    if result.outcome == "SUCCEEDED":
        yield Move(State.SUCCEEDED, run_digest=result.run_digest)
    elif result.reason_code in LASTING:
        yield Move(State.FAILED, result.reason_code, result.message)
    else:
        unasked = result.outcome == "STOPPED"
        reason = result.reason_code or ReasonCode.WORKER_ERROR
        if unasked and reason in (ReasonCode.USER_REQUEST, ReasonCode.WORKER_ERROR):
            reason = ReasonCode.PREEMPTED  # it ended itself, having saved: it was given notice
        yield recover(job, seen, patience, reason, result.message, explain=unasked)


def _stopping(job: Job, seen: Seen, patience: Patience) -> Iterator[Action]:
    assert job.intent is not None, job
    end = Move(ENDS[job.intent], job.reason_code, job.message)
    grace_over = seen.waited_s > GRACE_S[job.intent] + patience.kill_s
    if seen.result is not None:
        yield _stopped(job, seen.result, end)
        return
    if not seen.stop_asked:
        yield AskStop()
    if seen.over:
        # The runner may be wrong: what still beats loses the folder, and ends by itself.
        yield Kill("the runner says that it is over")
        if not seen.beating or seen.quiet_s > patience.still_s:
            yield end
    elif grace_over:
        yield Kill("the grace is over")
        if seen.quiet_s > (patience.quiet_s if seen.runner is None else patience.silent_s):
            yield end


def _stopped(job: Job, result: Result, end: Move) -> Move:
    """The end of a job that was asked to stop, unless it came to another end first."""
    if result.outcome == "SUCCEEDED":
        return Move(State.SUCCEEDED, run_digest=result.run_digest)
    if result.reason_code in LASTING and job.intent is not Intent.CANCELLED:
        return Move(State.FAILED, result.reason_code, result.message)
    return end
