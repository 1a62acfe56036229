"""Processes of the local lab: free ports, start, look, end; nothing of what they are."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from stoplab_platform.errors import StoplabError

MARK = "STOPLAB_LAB"
"""In the environment of every process of a lab and of all that they start: `part@home`."""
# Below the range from which kernels take ports for outgoing connections.
LOWEST_PORT, HIGHEST_PORT, PORT_TRIES = 20000, 32000, 200
SAME_S = 1.0  # create times are read from a clock that may be set
POLL_S = 0.05
KILLED_S = 10.0  # until the kernel has taken a killed process away
REAPED_S = 2.0  # for init to take zombies away; some containers have none that does
ROUNDS = 5


class LabError(StoplabError):
    """The local lab cannot do what was asked; the message says what would help."""


@dataclass(frozen=True)
class Started:
    """A process that may be gone: its number alone could be somebody else's by now."""

    pid: int
    create_time: float

    def process(self) -> psutil.Process | None:
        """The living process; None when it has ended."""
        with suppress(psutil.Error):
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.create_time) < SAME_S
            if same and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


def start(
    command: Sequence[str], env: Mapping[str, str], folder: Path, log: Path, mark: str
) -> Started:
    """Start a command in a session of its own, its output at the end of ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=folder,
            env={**env, MARK: mark},
        )
    started = Started(process.pid, psutil.Process(process.pid).create_time())
    # It may end while we are still here, and its number must not stay taken by a zombie.
    threading.Thread(target=process.wait, name=f"reap-{process.pid}", daemon=True).start()
    return started


def end(roots: Iterable[Started], marks: Collection[str], grace_s: float) -> set[psutil.Process]:
    """End these processes, what they started, and whoever carries one of ``marks``.

    SIGTERM, then SIGKILL after the grace; looks again for what was started meanwhile.
    """
    roots = list(roots)
    ended: set[psutil.Process] = set()
    for _ in range(ROUNDS):
        found = _tree(roots) | _marked(marks)
        if not found:
            break
        _send(found, signal.SIGTERM)
        _send(_left(found, grace_s), signal.SIGKILL)
        _left(found, KILLED_S)
        ended |= found
    return ended


def wait_reaped(ended: Iterable[psutil.Process]) -> None:
    """Give init a moment to take zombies away: who looks for their numbers should find none."""
    ended = set(ended)
    deadline = time.monotonic() + REAPED_S
    while any(process.is_running() for process in ended) and time.monotonic() < deadline:
        time.sleep(POLL_S)


class Ports(ExitStack):
    """Free ports, kept from other labs of this user until the block ends.

    Between a look and a server's listening lie seconds, in which another lab may look as well.
    """

    def take(self, wanted: int | None = None, preferred: int | None = None) -> int:
        """The wanted port, or LabError; the preferred one where it is free; else any free one."""
        if wanted:
            if not self._claim(wanted):
                raise LabError(f"port {wanted} is taken; give another one, or 0 for any")
            return wanted
        if wanted is None and preferred is not None and self._claim(preferred):
            return preferred
        # Not the generator that specs seed: two labs must not draw the same ports.
        draw = random.SystemRandom()
        for _ in range(PORT_TRIES):
            port = draw.randint(LOWEST_PORT, HIGHEST_PORT)
            if self._claim(port):
                return port
        raise LabError(f"no free port between {LOWEST_PORT} and {HIGHEST_PORT}")

    def _claim(self, port: int) -> bool:
        folder = Path("/tmp") / f"stoplab-ports-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        try:
            self.enter_context(FileLock(folder / str(port), timeout=0))
        except Timeout:
            return False
        return is_free(port)


def is_free(port: int) -> bool:
    """Whether nobody listens on a port, on any address of this machine."""
    with socket.socket() as probe:
        # Connections that were closed a moment ago do not hold a port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def tail(log: Path, num_lines: int = 15) -> str:
    """The last lines of a log; empty when there is none."""
    with suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-num_lines:])
    return ""


def _tree(roots: Iterable[Started]) -> set[psutil.Process]:
    found: set[psutil.Process] = set()
    for root in roots:
        process = root.process()
        if process is not None:
            with suppress(psutil.Error):
                found |= {process, *process.children(recursive=True)}
    return {process for process in found if _is_alive(process)}


def _marked(marks: Collection[str]) -> set[psutil.Process]:
    """Processes of this user that carry a mark, but for the one that asks."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            carries = process.environ().get(MARK) in marks
            if carries and process.pid != os.getpid() and _is_alive(process):
                found.add(process)
    return found


def _send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def _left(processes: Iterable[psutil.Process], timeout_s: float) -> set[psutil.Process]:
    """Those of them that are still alive after so long."""
    left = set(processes)
    deadline = time.monotonic() + timeout_s
    while True:
        left = {process for process in left if _is_alive(process)}
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(POLL_S)


def _is_alive(process: psutil.Process) -> bool:
    """A zombie is not: only its parent can take it away."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
