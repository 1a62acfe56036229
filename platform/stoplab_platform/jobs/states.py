"""The life of a job: states, legal moves, reasons.

1. QUEUED: accepted, waits for admission.
2. STARTING: admitted; its first attempt is handed to the runner, no heartbeat yet.
3. RUNNING: the attempt's heartbeat was seen.
4. RECOVERING: an attempt ended unexpectedly; the next one is started, no heartbeat yet.
5. STOPPING: asked to stop (intent CANCELLED, PAUSED or FAILED), not gone yet.
6. PAUSED: gone, checkpoints kept; resume puts it back into the queue.
7. SUCCEEDED, FAILED, CANCELLED: the end.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    RECOVERING = "RECOVERING"
    STOPPING = "STOPPING"
    PAUSED = "PAUSED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class ReasonCode(StrEnum):
    """Why a job is where it is; a closed list beside a sentence for people."""

    USER_REQUEST = "USER_REQUEST"  # somebody cancelled, paused or resumed it
    BAD_INPUT = "BAD_INPUT"  # the spec or the data were refused by the run itself
    RUN_ERROR = "RUN_ERROR"  # the run raised an error; trying again would raise it again
    DATA_MISSING = "DATA_MISSING"  # data that the spec names are not there
    DATA_AWAY = "DATA_AWAY"  # the place that holds the data does not answer
    DIVERGED = "DIVERGED"  # the loss is no number any more
    COLLAPSED = "COLLAPSED"  # all features became the same, and its spec says to stop then
    WORKER_ERROR = "WORKER_ERROR"  # a process of the attempt was killed
    OOM = "OOM"  # the kernel or Ray killed it for memory
    GPU_OOM = "GPU_OOM"  # the GPU had no memory left
    DISK_FULL = "DISK_FULL"  # nothing could be written any more
    PREEMPTED = "PREEMPTED"  # the cluster asked it to leave
    NODE_LOST = "NODE_LOST"  # the cluster no longer knows the attempt
    HUNG = "HUNG"  # it lived and made no more steps
    HEARTBEAT_LOST = "HEARTBEAT_LOST"  # no sign of life though the cluster says it runs
    START_FAILED = "START_FAILED"  # the attempt never showed a heartbeat
    RETRIES_EXHAUSTED = "RETRIES_EXHAUSTED"  # the budget of a kind of failures is used up
    TIME_LIMIT = "TIME_LIMIT"  # limits.wall_hours is used up
    BUDGET = "BUDGET"  # limits.gpu_hours is used up


ACTIVE = frozenset({State.STARTING, State.RUNNING, State.RECOVERING, State.STOPPING})
"""States in which an attempt may be alive: they hold a reservation."""

TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})
"""Final states."""

_ENDS = frozenset({State.SUCCEEDED, State.FAILED})

MOVES: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.STARTING, State.PAUSED, State.CANCELLED, State.FAILED}),
    State.STARTING: frozenset({State.RUNNING, State.RECOVERING, State.STOPPING}) | _ENDS,
    State.RUNNING: frozenset({State.RECOVERING, State.STOPPING}) | _ENDS,
    # Once more RECOVERING: the attempt that should have helped did not start either.
    State.RECOVERING: frozenset({State.RUNNING, State.RECOVERING, State.STOPPING}) | _ENDS,
    # Once more STOPPING: a pause, or a stop at a limit, became a cancel.
    State.STOPPING: frozenset({State.CANCELLED, State.PAUSED, State.STOPPING}) | _ENDS,
    State.PAUSED: frozenset({State.QUEUED, State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}
"""The legal moves."""

_ACTIONS: dict[State, tuple[str, ...]] = {
    State.QUEUED: ("cancel", "pause"),
    State.STARTING: ("cancel", "pause"),
    State.RUNNING: ("cancel", "pause"),
    State.RECOVERING: ("cancel", "pause"),
    State.STOPPING: ("cancel",),
    State.PAUSED: ("cancel", "resume"),
}


STUDIES = ("sweep", "compare")
"""Kinds of jobs that hold many runs: these can be extended."""


def allowed_actions(state: State, kind: str = "") -> tuple[str, ...]:
    """What can be asked of a job: `cancel`, `pause`, `resume`, `retry`, `extend`, `delete`."""
    ended = ("retry", "extend", "delete") if kind in STUDIES else ("retry", "delete")
    return _ACTIONS.get(state, ended)
