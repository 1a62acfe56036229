"""Runs one attempt of a job inside the cluster, and is the only one who says how it ended.

    python -m stoplab_platform.supervisor --job JOB_ID --attempt N [--leave-with-parent]
        [-- COMMAND...]

It owns the job's folder (the fence), writes the driver's output there byte for byte, counts a
heartbeat, obeys the stop file's deadline, and leaves `result.json`. COMMAND replaces the
entrypoint of the spec's kind.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from math import inf
from types import FrameType
from typing import Literal

import yaml

from stoplab_platform import logs
from stoplab_platform.attempts import attempt_env
from stoplab_platform.child import Child
from stoplab_platform.errors import Fenced
from stoplab_platform.exits import Exit
from stoplab_platform.fence import bury, claim_attempt, own, owner
from stoplab_platform.handoff import Result, StopOrder, read_stop
from stoplab_platform.jobs.states import ReasonCode
from stoplab_platform.paths import JobFolder, read_json, write_json
from stoplab_platform.settings import Settings
from stoplab_platform.tracking import drain

log = logging.getLogger("stoplab.supervisor")

ENTRYPOINTS = {
    "pretrain": "stoplab_trainers.main",
    "evaluate": "stoplab_trainers.main",
    "sweep": "stoplab_sweeps.main",
    "compare": "stoplab_sweeps.main",
}
BEAT_S = 1.0
TICK_S = 0.2
TERM_TO_KILL_S = 2.0  # Ray kills 3 s after its own SIGTERM; the result must be written by then
DRAIN_S = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Supervise one attempt; the exit code is the child's (128 + n for signal n)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = words[words.index("--") + 1 :] if "--" in words else []
    parser = argparse.ArgumentParser(prog="python -m stoplab_platform.supervisor")
    parser.add_argument("--job", required=True)
    parser.add_argument("--attempt", required=True, type=int)
    parser.add_argument("--leave-with-parent", action="store_true")
    options = parser.parse_args(words[: words.index("--")] if "--" in words else words)
    settings = Settings()
    logs.set_up(settings, job_id=options.job, attempt=options.attempt)
    parent = os.getppid() if options.leave_with_parent else None
    supervisor = Supervisor(settings, options.job, options.attempt, command, parent)
    signal.signal(signal.SIGTERM, supervisor.on_terminate)
    try:
        return supervisor.run()
    except Fenced as error:
        log.warning("%s", error)
        return Exit.FENCED


def entrypoint(folder: JobFolder) -> list[str]:
    """The command that runs the folder's spec."""
    kind = yaml.safe_load(folder.spec.read_text())["kind"]
    return [sys.executable, "-m", ENTRYPOINTS[kind], str(folder.spec)]


class Supervisor:
    """One attempt, from taking the folder to leaving the result."""

    def __init__(
        self,
        settings: Settings,
        job_id: str,
        attempt: int,
        command: Sequence[str] = (),
        parent: int | None = None,
    ) -> None:
        self._settings = settings
        self._job_id, self._attempt = job_id, attempt
        self._folder = settings.folders.job(job_id)
        self._command = command
        self._parent = parent
        self._ending: ReasonCode | None = None
        """Why the child is being ended, once it is."""
        self._term_at = inf
        """When the child gets SIGTERM, by the monotonic clock."""

    def run(self) -> int:
        """Run the attempt; Fenced when the folder belongs, or comes to belong, to another."""
        own(self._folder, self._attempt)
        claim_attempt(self._folder, self._attempt)
        bury(self._folder, self._job_id, self._attempt)
        if read_stop(self._folder, self._attempt):
            return self._leave(Exit.STOPPED, "stopped before it began")
        command = self._command or entrypoint(self._folder)
        env = attempt_env(self._settings, self._job_id, self._attempt)
        try:
            # Before any thread of ours is there: the child is forked from this one.
            child = Child(command, env, self._folder.driver_log)
        except OSError as error:
            return self._leave(Exit.FAILED, f"the entrypoint cannot be run: {error}")
        with Beat(self._folder, self._attempt):
            with child:
                self._watch(child)
            self._drain()
            return self._leave(child.code, child.last_line(), oom=child.met_oom())

    def on_terminate(self, _number: int, _frame: FrameType | None) -> None:
        """SIGTERM: the cluster wants the attempt gone, for a reason that it keeps to itself."""
        self._end(ReasonCode.PREEMPTED, time.monotonic())

    def _watch(self, child: Child) -> None:
        stop: StopOrder | None = None
        while not child.wait(TICK_S):
            with suppress(OSError):  # a file system that is away for a moment ends nothing
                self._check_fence()
                order = read_stop(self._folder, self._attempt)
                if order is not None and order != stop:
                    stop = order
                    self._end(ReasonCode.USER_REQUEST, time.monotonic() + order.deadline_s)
            if self._parent is not None and os.getppid() != self._parent:
                self._end(ReasonCode.NODE_LOST, time.monotonic())
            late = time.monotonic() - self._term_at
            if late >= 0:
                child.signal(signal.SIGKILL if late > TERM_TO_KILL_S else signal.SIGTERM)

    def _end(self, reason: ReasonCode, term_at: float) -> None:
        """Note why and when the child must go; an earlier time stands, the first reason too."""
        self._ending = self._ending or reason
        self._term_at = min(self._term_at, term_at)

    def _check_fence(self) -> None:
        if owner(self._folder) > self._attempt:
            raise Fenced(f"a newer attempt owns {self._folder.root}; this one ends")

    def _drain(self) -> None:
        """Send what the runs left for the tracker, unless somebody waits for the end."""
        deadline = time.monotonic() + (DRAIN_S if self._ending is None else 0)
        for run in self._folder.each_run():
            left_s = deadline - time.monotonic()
            if left_s > 0 and not drain(run, self._settings.tracking_uri, left_s):
                log.warning("%s waits in its spool for the tracker", run.root.name)

    def _leave(self, code: int, message: str | None, *, oom: bool = False) -> int:
        """Write the result unless the folder is another's by now."""
        self._check_fence()
        result = judge(self._attempt, code, message, self._ending, oom=oom)
        digest = (read_json(self._folder.run("run").summary) or {}).get("run_digest")
        write_json(
            self._folder.result,
            result.model_copy(update={"run_digest": digest}).model_dump(mode="json"),
        )
        return code if code >= 0 else 128 - code


class Beat:
    """Raises the heartbeat's counter each second for as long as the block lasts."""

    def __init__(self, folder: JobFolder, attempt: int) -> None:
        self._folder, self._attempt = folder, attempt
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="stoplab-beat", daemon=True)

    def __enter__(self) -> Beat:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        for count in itertools.count(1):
            with suppress(OSError):
                if owner(self._folder) > self._attempt:
                    return  # another's heartbeat by now
                write_json(self._folder.heartbeat, {"attempt": self._attempt, "count": count})
            if self._over.wait(BEAT_S):
                return


def judge(
    attempt: int, code: int, message: str | None, ending: ReasonCode | None, *, oom: bool = False
) -> Result:
    """What an exit code means, given why we ended the process (if we did)."""
    outcome: Literal["SUCCEEDED", "FAILED", "STOPPED"] = "FAILED"
    reason: ReasonCode | None = ending
    if code == Exit.OK:
        outcome, reason, message = "SUCCEEDED", None, None
    elif code == Exit.STOPPED:
        outcome, reason = "STOPPED", ending or ReasonCode.USER_REQUEST
    elif code == Exit.BAD_INPUT:
        reason = ReasonCode.BAD_INPUT
    elif ending is ReasonCode.USER_REQUEST:
        outcome, message = "STOPPED", "killed: the grace was over"
    elif 0 < code < 128:
        reason = ending or ReasonCode.RUN_ERROR
    else:
        reason = ending or (ReasonCode.OOM if oom else ReasonCode.WORKER_ERROR)
        message = f"killed by signal {-code if code < 0 else code - 128}; last line: {message}"
    return Result(
        attempt=attempt, exit_code=code, outcome=outcome, reason_code=reason, message=message,
        finished_at=datetime.now(UTC),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
