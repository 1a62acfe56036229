"""The runner on this machine: plain processes, for tests and for labs without Ray.

A process is a session of its own and outlives the API. Its pid and time of creation are kept on
disk, so that a new API adopts it.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from stoplab_platform.errors import RunnerUnavailable
from stoplab_platform.files import read_json, write_json
from stoplab_platform.runner.base import Launch, Observed, RunnerState

KILL_AFTER_S = 3.0  # as Ray does


class LocalRunner:
    """Runs processes; keeps a file and a log for each below ``folder``."""

    tied_to_parent = False

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._codes: dict[int, int] = {}
        """Exit codes of children of this process, by pid."""
        self._children: set[int] = set()
        self._reaping = threading.Lock()

    def start(self, launch: Launch) -> None:
        """Spawn, unless the id's file holds a process already."""
        record = self._record(launch.submission_id)
        try:
            record.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(record.with_suffix(".lock")):
                if not record.exists():
                    write_json(record, self._spawn(launch, record.with_suffix(".log")))
        except OSError as error:
            raise RunnerUnavailable(f"no process can be started: {error}") from error

    def observe(self, submission_id: str) -> Observed:
        """Alive or over; how it ended is known only to the process that started it."""
        found = self._known(submission_id)
        if found is None:
            return Observed(RunnerState.ABSENT)
        if _process(found) is not None:
            return Observed(RunnerState.RUNNING)
        if found.get("stopped"):
            return Observed(RunnerState.STOPPED)
        code = self._codes.get(found["pid"])
        if code == 0:
            return Observed(RunnerState.SUCCEEDED)
        told = "an exit code that nobody saw" if code is None else f"exit code {code}"
        return Observed(RunnerState.FAILED, f"process {found['pid']} ended with {told}")

    def stop(self, submission_id: str) -> None:
        """SIGTERM to the process and all below it, SIGKILL after 3 s."""
        found = self._known(submission_id)
        process = None if found is None else _process(found)
        if found is None or process is None:
            return
        write_json(self._record(submission_id), {**found, "stopped": True})
        tree = [process]
        with suppress(psutil.NoSuchProcess):
            tree += process.children(recursive=True)
        _send(tree, signal.SIGTERM)
        killer = threading.Timer(KILL_AFTER_S, _send, (tree, signal.SIGKILL))
        killer.daemon = True
        killer.start()

    def forget(self, submission_id: str) -> None:
        """Remove its file, its log and its lock."""
        found = self._known(submission_id)
        if found is not None and _process(found) is not None:
            raise RunnerUnavailable(f"{submission_id} still lives")
        record = self._record(submission_id)
        for path in (record, record.with_suffix(".log"), record.with_suffix(".lock")):
            path.unlink(missing_ok=True)
        if found is not None:
            self._codes.pop(found["pid"], None)

    def alive(self) -> bool:
        """Always: the machine is here."""
        self._reap()
        return True

    def _spawn(self, launch: Launch, log: Path) -> dict[str, Any]:
        # Not subprocess.Popen: this process may end before the child, and owes it nothing.
        with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
            pid = os.posix_spawnp(
                launch.entrypoint[0],
                list(launch.entrypoint),
                {**os.environ, **launch.env},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, nothing.fileno(), 0),
                    (os.POSIX_SPAWN_DUP2, output.fileno(), 1),
                    (os.POSIX_SPAWN_DUP2, output.fileno(), 2),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGINT],  # Python ignores the first
            )
        created = psutil.Process(pid).create_time()
        with self._reaping:
            self._children.add(pid)
        return {"pid": pid, "created": created}

    def _known(self, submission_id: str) -> dict[str, Any] | None:
        self._reap()
        return read_json(self._record(submission_id))

    def _record(self, submission_id: str) -> Path:
        return self._folder / f"{submission_id}.json"

    def _reap(self) -> None:
        """Collect exit codes of ended children, so that none stays as a zombie."""
        with self._reaping:
            for pid in list(self._children):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self._codes[pid] = os.waitstatus_to_exitcode(status)
                    self._children.discard(pid)


def _process(found: dict[str, Any]) -> psutil.Process | None:
    """The living process of a record; a pid that somebody else got since does not count."""
    try:
        process = psutil.Process(found["pid"])
        if process.create_time() != found["created"] or process.status() == psutil.STATUS_ZOMBIE:
            return None
    except psutil.NoSuchProcess:
        return None
    return process


def _send(tree: list[psutil.Process], number: signal.Signals) -> None:
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
