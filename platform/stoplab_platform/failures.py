"""Why attempts fail: how each reason is known, what people are told, how often it is tried again.

One table, no state. Its first row that fits an exit code, or the last words of an attempt, names
the reason. Waits double from `first_s` up to `cap_s`: no chance is in them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from stoplab_platform.exits import Exit
from stoplab_platform.jobs.states import ReasonCode


@dataclass(frozen=True)
class Failure:
    """One reason."""

    code: ReasonCode
    told: str
    """What it means and what helps, for people."""
    retries: int | None = None
    """Attempts after the first failure of this kind; None: as many as compute.max_failures."""
    first_s: float = 1
    """Wait before the first of them (seconds)."""
    cap_s: float = 30
    """Longest wait (seconds)."""
    exits: tuple[int, ...] = ()
    """Exit codes that mean this."""
    words: str = ""
    """A pattern in the attempt's last words, or in the runner's, that means this."""


TABLE = (
    Failure(
        ReasonCode.BAD_INPUT,
        "the spec or the data were refused; mend what the message names and submit again",
        retries=0,
        exits=(Exit.BAD_INPUT,),
    ),
    Failure(
        ReasonCode.DATA_MISSING,
        "the data or a part of it is not there; check the paths of `data` and that every node "
        "sees them, then retry",
        retries=0,
        exits=(Exit.NO_DATA,),
        words=r"\bDataMissing: ",
    ),
    Failure(
        ReasonCode.DATA_AWAY,
        "the place that holds the data did not answer, however often it was asked; it goes on from "
        "its last checkpoint",
        first_s=30,
        cap_s=600,
        words=r"\bDataAway: ",
    ),
    Failure(
        ReasonCode.DIVERGED,
        "the loss is no number any more, and would be so again; lower optim.lr, set "
        "optim.clip_grad, or give compute.precision fp32",
        retries=0,
        words=r"\bDiverged: ",
    ),
    Failure(
        ReasonCode.COLLAPSED,
        "all images get nearly the same features, and would again; lower optim.lr, raise "
        "optim.ema, or give collapse: warn to let it go on",
        retries=0,
        words=r"\bCollapsed: ",
    ),
    Failure(
        ReasonCode.DISK_FULL,
        "a disk is full; free some space, or lower checkpoint.keep",
        first_s=60,
        cap_s=600,
        words=r"No space left on device|Disk quota exceeded",
    ),
    Failure(
        ReasonCode.GPU_OOM,
        "the GPU's memory was too small; lower optim.batch_size or give more compute.workers "
        "(it is tried once more: another process may have held the memory)",
        retries=1,
        first_s=30,
        words=r"CUDA out of memory|CUDA error: out of memory",
    ),
    Failure(
        ReasonCode.OOM,
        "the machine's memory was too small; lower optim.batch_size or data.loader_threads, or "
        "reserve more compute.cpus_per_worker, so that fewer jobs share a machine",
        first_s=10,
        cap_s=120,
        words=r"running low on memory|killed due to memory pressure|^MemoryError\b"
        r"|DefaultCPUAllocator: .*memory|\[Errno 12\]",
    ),
    Failure(
        ReasonCode.PREEMPTED,
        "the cluster took its machine back; it goes on from its last checkpoint elsewhere",
        retries=1000,
        first_s=5,
        cap_s=300,
        words=r"node was preempted|forcibly preempted",
    ),
    Failure(
        ReasonCode.HUNG,
        "no step came any more, and it ended itself; the ranks' logs say which one the others "
        "waited for, and where each stood; a machine, its network or the shared files hung",
        first_s=5,
        cap_s=120,
        exits=(Exit.HUNG,),
        words=r"\bHung: ",
    ),
    Failure(
        ReasonCode.NODE_LOST,
        "a machine of the attempt is gone; it goes on from its last checkpoint",
        first_s=5,
        cap_s=120,
        words=r"node has died|node was terminated|NodeDiedError|local raylet died",
    ),
    Failure(
        ReasonCode.WORKER_ERROR,
        "a process of the run was killed; if nobody did that, look into the log for a crash",
        words=r"died unexpectedly|WorkerCrashedError|ActorDiedError",
    ),
    Failure(
        ReasonCode.HEARTBEAT_LOST,
        "nothing was heard of the attempt; the machine, its network or the shared files hung",
        first_s=5,
        cap_s=120,
    ),
    Failure(
        ReasonCode.START_FAILED,
        "the attempt never came to life; look at what the cluster says of it",
        first_s=5,
        cap_s=120,
    ),
    Failure(
        ReasonCode.RUN_ERROR,
        "the run raised an error and would do so again; its log has the traceback",
        retries=0,
    ),
)
FAILURES = {failure.code: failure for failure in TABLE}

LASTING = frozenset(failure.code for failure in TABLE if failure.retries == 0)
"""Another attempt would end the same way."""

SPEAKS_FOR_ITSELF = (ReasonCode.BAD_INPUT, ReasonCode.RUN_ERROR)


def cause(exit_code: int, words: str = "", *, oom: bool = False) -> ReasonCode:
    """The reason behind an exit code and an attempt's last words.

    ``oom``: the kernel killed something for memory meanwhile, perhaps a neighbour.
    """
    killed = exit_code < 0 or exit_code > 128
    default = ReasonCode.WORKER_ERROR if killed else ReasonCode.RUN_ERROR
    by_code = (failure.code for failure in TABLE if exit_code in failure.exits)
    found = next(by_code, None) or cause_in(words) or default
    return ReasonCode.OOM if oom and found is ReasonCode.WORKER_ERROR else found


def cause_in(words: str) -> ReasonCode | None:
    """The reason that some words name, if they do."""
    for failure in TABLE:
        if failure.words and re.search(failure.words, words, re.MULTILINE):
            return failure.code
    return None


def explained(code: ReasonCode, said: str | None) -> str | None:
    """A sentence for people: what the reason means, and what the attempt itself said."""
    if code in SPEAKS_FOR_ITSELF or code not in FAILURES:
        return said
    told = FAILURES[code].told
    return f"{told} ({said})" if said else told


def budget(code: ReasonCode, max_failures: int) -> int:
    """Attempts that may follow failures of this kind; none of any where max_failures is 0."""
    retries = FAILURES[code].retries
    return max_failures if retries is None or max_failures == 0 else retries


def back_off_s(code: ReasonCode, failures: int) -> float:
    """Wait before the attempt after so many failures of this kind (seconds)."""
    failure = FAILURES[code]
    return min(failure.first_s * 2.0 ** min(failures - 1, 30), failure.cap_s)
