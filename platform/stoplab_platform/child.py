"""The process below a supervisor: in its own group, its output kept byte for byte."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
CHUNK = 65536
TAIL_BYTES = 16384  # of a traceback through Ray, all that matters
MESSAGE_CHARS = 500
TIME = re.compile(r"^\d\d:\d\d:\d\d ")  # before each line of a run's log
FLUSH_S = 5.0  # to read what a killed group has left in the pipe
POLL_S = 0.05


class Child:
    """A running command; a context manager that leaves nothing of its group alive."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], output: Path) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        self._tail = b""
        self._oom_before = oom_kills()
        # Unbuffered: a byte that the child wrote is in the file though we are killed next.
        self._output = FileIO(output, "ab")
        try:
            _mark(self._output, output, env.get("STOPLAB_ATTEMPT", "1"))
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **env},
                preexec_fn=_dies_with(os.getpid()),
            )
        except OSError:
            self._output.close()
            raise
        self._tee = threading.Thread(target=self._copy, name="stoplab-tee", daemon=True)
        self._tee.start()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_error: object) -> None:
        """Kill what is left of the group, and keep its last words."""
        self.signal(signal.SIGKILL)
        self._process.wait()
        self._tee.join(FLUSH_S)
        self._output.close()

    @property
    def code(self) -> int:
        """Exit code; -n for signal n."""
        assert self._process.returncode is not None
        return self._process.returncode

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended; gives it so long.

        It is not reaped yet, so that its number still names its group and nobody else's.
        """
        deadline = time.monotonic() + timeout_s
        how = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while os.waitid(os.P_PID, self._process.pid, how) is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_S)
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def last_line(self) -> str | None:
        """The last line that says anything, without its time: of a traceback, the error."""
        said = (TIME.sub("", line.strip()) for line in reversed(self.last_words().splitlines()))
        return next((line[:MESSAGE_CHARS] for line in said if line), None)

    def last_words(self) -> str:
        """The end of what it wrote."""
        return self._tail.decode(errors="replace")

    def met_oom(self) -> bool:
        """Whether the kernel killed something of our control group for memory since the start."""
        return oom_kills() > self._oom_before

    def _copy(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            while data := os.read(pipe.fileno(), CHUNK):
                self._tail = (self._tail + data)[-TAIL_BYTES:]
                for file in (self._output, sys.stdout):
                    # A full disk must not stop the run: the pipe is read on.
                    with suppress(OSError, ValueError):
                        _write(file.fileno(), data)


def oom_kills() -> int:
    """How often the kernel killed in our control group for memory (cgroup v2); 0 if unknown."""
    with suppress(OSError, ValueError):
        group = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip().lstrip("/")
        events = Path("/sys/fs/cgroup", group, "memory.events").read_text()
        return int(dict(line.split() for line in events.splitlines())["oom_kill"])
    return 0


def _dies_with(parent: int) -> Callable[[], None] | None:
    """What makes a child die (SIGKILL) with the thread that starts it; Linux only."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)

    def arrange() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before we asked
            os._exit(128 + signal.SIGKILL)

    return arrange


def _mark(file: FileIO, path: Path, attempt: str) -> None:
    """A line of its own where an attempt's output begins."""
    with path.open("rb") as written:
        size = written.seek(0, os.SEEK_END)
        written.seek(max(0, size - 1))
        torn = written.read(1) not in (b"", b"\n")
    at = datetime.now(UTC).isoformat(timespec="seconds")
    _write(file.fileno(), f"{chr(10) * torn}--- attempt {attempt} starts {at}\n".encode())


def _write(place: int, data: bytes) -> None:
    """All of it: a write may take a part."""
    while data:
        data = data[os.write(place, data) :]
