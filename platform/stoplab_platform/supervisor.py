"""Runs one attempt of a job inside the cluster, and is the only one who says how it ended.

    python -m stoplab_platform.supervisor --job JOB_ID --attempt N [--leave-with-parent]
        [-- COMMAND...]

It owns the job's folder (the fence), writes the driver's output there byte for byte, counts a
heartbeat, obeys the stop file's deadline, and leaves `result.json`. Where it is cut off from the
folder, it ends the run. COMMAND replaces the entrypoint of the spec's kind.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
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
from stoplab_platform.contact import Contact
from stoplab_platform.errors import Fenced, SettingsError
from stoplab_platform.exits import Exit
from stoplab_platform.failures import cause, explained
from stoplab_platform.fence import bury, claim_attempt, own, owner
from stoplab_platform.files import read_json, write_json
from stoplab_platform.handoff import Result, read_stop
from stoplab_platform.jobs.states import STUDIES, ReasonCode
from stoplab_platform.paths import JobFolder
from stoplab_platform.redaction import scrubbed
from stoplab_platform.secret_store import Secrets
from stoplab_platform.settings import Settings
from stoplab_platform.tracking import drain

log = logging.getLogger("stoplab.supervisor")

ENTRYPOINTS = {
    "pretrain": "stoplab_trainers.main",
    "evaluate": "stoplab_trainers.main",
    "sweep": "stoplab_sweeps.main",
    "compare": "stoplab_sweeps.main",
}
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
    return [sys.executable, "-m", ENTRYPOINTS[kind_of(folder)], str(folder.spec)]


def kind_of(folder: JobFolder) -> str:
    """The kind of the folder's spec."""
    return str(yaml.safe_load(folder.spec.read_text())["kind"])


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
        if not bury(self._folder, self._job_id, self._attempt):
            self._ending = ReasonCode.START_FAILED
            return self._leave(Exit.FAILED, "an older attempt still lives, on another machine")
        if read_stop(self._folder, self._attempt):
            return self._leave(Exit.STOPPED, "stopped before it began")
        with suppress(SettingsError, OSError):  # the entrypoint says what is missing
            self._hide_secrets()
        command = self._command or entrypoint(self._folder)
        env = attempt_env(self._settings, self._job_id, self._attempt)
        try:
            # Before any thread of ours is there: the child is forked from this one.
            child = Child(command, env, self._folder.driver_log)
        except OSError as error:
            return self._leave(Exit.FAILED, f"the entrypoint cannot be run: {error}")
        with Contact(self._folder, self._attempt) as contact:
            with child:
                self._watch(child, contact)
            self._drain()
            return self._leave(child.code, child.last_line(), child)

    def on_terminate(self, _number: int, _frame: FrameType | None) -> None:
        """SIGTERM: the cluster wants the attempt gone, for a reason that it keeps to itself."""
        self._end(ReasonCode.PREEMPTED, time.monotonic())

    def _watch(self, child: Child, contact: Contact) -> None:
        """Wait for the child's end, and see to it when it is due; no file is touched here."""
        while not child.wait(TICK_S):
            if contact.fenced:
                raise self._fenced()
            if contact.stop is not None:
                order, seen_at = contact.stop
                self._end(ReasonCode.USER_REQUEST, seen_at + order.deadline_s)
            if (lost := contact.lost()) is not None:
                self._end(lost, time.monotonic())
            if self._parent is not None and os.getppid() != self._parent:
                self._end(ReasonCode.NODE_LOST, time.monotonic())
            late = time.monotonic() - self._term_at
            if late >= 0:
                child.signal(signal.SIGKILL if late > TERM_TO_KILL_S else signal.SIGTERM)

    def _end(self, reason: ReasonCode, term_at: float) -> None:
        """Note why and when the child must go; an earlier time stands, the first reason too."""
        self._ending = self._ending or reason
        self._term_at = min(self._term_at, term_at)

    def _fenced(self) -> Fenced:
        return Fenced(f"{self._folder.root} is no longer attempt {self._attempt}'s, which ends")

    def _hide_secrets(self) -> None:
        """The message of the result is a line of the run's own, and goes into the database."""
        spec = yaml.safe_load(self._folder.spec.read_text())
        Secrets(self._settings).hide_those_in(spec)

    def _drain(self) -> None:
        """Send what the runs left for the tracker, unless somebody waits for the end."""
        deadline = time.monotonic() + (DRAIN_S if self._ending is None else 0)
        for run in self._folder.each_run():
            left_s = deadline - time.monotonic()
            if left_s > 0 and not drain(run, self._settings.tracking_uri, left_s):
                log.warning("%s waits in its spool for the tracker", run.root.name)

    def _leave(self, code: int, message: str | None, child: Child | None = None) -> int:
        """Write the result, unless the folder is another's by now, or gone."""
        if owner(self._folder) != self._attempt:
            raise self._fenced()
        message = None if message is None else scrubbed(message)
        result = judge(
            self._attempt, code, message, self._ending,
            words=self._last_words(child), oom=child is not None and child.met_oom(),
        )  # fmt: skip
        digest = (read_json(self._folder.run("run").summary) or {}).get("run_digest")
        write_json(
            self._folder.result,
            result.model_copy(update={"run_digest": digest}).model_dump(mode="json"),
        )
        return code if code >= 0 else 128 - code

    def _last_words(self, child: Child | None) -> str:
        """What tells why a single run failed; what fails in a study is the study's to judge."""
        if child is None or (self._folder.spec.exists() and kind_of(self._folder) in STUDIES):
            return ""
        return child.last_words()


def judge(
    attempt: int,
    code: int,
    message: str | None,
    ending: ReasonCode | None,
    *,
    words: str = "",
    oom: bool = False,
) -> Result:
    """What an exit code and last words mean, given why we ended the process (if we did)."""
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
    else:
        reason = ending or cause(code, words, oom=oom)
        if not 0 < code < 128:
            message = f"killed by signal {-code if code < 0 else code - 128}; last line: {message}"
        message = explained(reason, message)
    return Result(
        attempt=attempt, exit_code=code, outcome=outcome, reason_code=reason, message=message,
        finished_at=datetime.now(UTC),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
