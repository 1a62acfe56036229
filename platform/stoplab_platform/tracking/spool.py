"""The spool: one JSON line a word of the run, with its own time, appended and never changed.

Lines: `start` (identity, tags, params), `resume` (tags), `metrics` (step, values), `tags`,
`artifact`, `finish`; each has `at`, milliseconds since 1970. A line without its newline was cut
off by a kill; it has never been sent, and the next writer removes it. One that is broken all the
same is passed over by whoever reads.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stoplab_platform.paths import RunFolder
from stoplab_platform.tracking.base import RunIdentity, Status, flatten
from stoplab_platform.tracking.lines import whole_lines
from stoplab_platform.tracking.sender import Sender, sent_run_id


class SpoolTracker:
    """Writes the spool; a daemon thread sends it to MLflow at ``uri`` (null: nobody does)."""

    def __init__(self, folder: RunFolder, uri: str | None) -> None:
        self._folder = folder
        folder.root.mkdir(parents=True, exist_ok=True)
        self._started, self._last = _what_is_there(folder.spool)
        self._file = folder.spool.open("ab", buffering=0)
        self._pump = None if uri is None else Pump(Sender(folder, uri))

    @property
    def run_id(self) -> str | None:
        """Id of the run in MLflow; None until it is there."""
        return sent_run_id(self._folder)

    def start(self, identity: RunIdentity, params: Mapping[str, Any]) -> None:
        """Open the run, or go on with the one that the spool holds."""
        if self._started:
            self._say("resume", tags=identity.as_tags())
            return
        self._started = True
        self._say(
            "start",
            experiment=identity.experiment,
            tags=identity.as_tags(),
            params=flatten(params),
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append the points that the spool does not hold yet."""
        fresh = {
            name: float(value)
            for name, value in values.items()
            if step > self._last.get(name, step - 1)
        }
        if fresh:
            self._last.update(dict.fromkeys(fresh, step))
            self._say("metrics", step=step, values=fresh)

    def tags(self, values: Mapping[str, str]) -> None:
        """Append words."""
        self._say("tags", tags=dict(values))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Append a file's place."""
        assert path.exists(), path
        self._say("artifact", path=str(path.absolute()), folder=folder)

    def finish(self, status: Status) -> None:
        """Append the end."""
        self._say("finish", status=status)

    def close(self, timeout_s: float = 10.0) -> None:
        """Give the thread so long to send the rest; what remains is `drain`'s."""
        if not self._file.closed:
            self._file.close()
            if self._pump is not None:
                self._pump.close(timeout_s)

    def _say(self, verb: str, **words: Any) -> None:
        assert self._started, "a run starts before it says anything"
        line = json.dumps({"at": int(time.time() * 1000), "verb": verb, **words})
        self._write(line.encode() + b"\n")
        if self._pump is not None:
            self._pump.wake()

    def _write(self, line: bytes) -> None:
        """The whole line or nothing: what follows a part of one would be lost with it."""
        before = os.fstat(self._file.fileno()).st_size
        try:
            while line:  # a disk that fills up takes a part of it, and refuses the rest
                line = line[self._file.write(line) :]
        except OSError:
            self._file.truncate(before)
            raise


class Pump:
    """The thread that sends, at most once a second, until it is closed."""

    PERIOD_S = 1.0
    BACK_OFF_S = 8.0

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._news, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="stoplab-spool", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something to send."""
        self._news.set()

    def close(self, timeout_s: float) -> None:
        """Send what is left; return when it is sent, or at the deadline."""
        self._deadline = time.monotonic() + timeout_s
        self._closing.set()
        self._news.set()
        self._thread.join(timeout_s)

    def _work(self) -> None:
        wait_s = self.PERIOD_S
        while not self._closing.is_set():
            self._news.wait()
            self._news.clear()
            if self._sender.send():
                wait_s = self.PERIOD_S
            else:
                self._news.set()
                wait_s = min(2 * wait_s, self.BACK_OFF_S)
            self._closing.wait(wait_s)
        while not self._sender.send() and time.monotonic() < self._deadline:
            time.sleep(0.2)


def _what_is_there(spool: Path) -> tuple[bool, dict[str, int]]:
    """Whether the run has started, and the last step of each metric; a torn end is cut off."""
    started, last, end = False, dict[str, int](), 0
    if not spool.exists():
        return started, last
    with spool.open("rb") as file:
        for line, size in whole_lines(file):
            end += size
            if line is not None and line["verb"] == "metrics":
                last.update(dict.fromkeys(line["values"], line["step"]))
            started = started or (line is not None and line["verb"] == "start")
    os.truncate(spool, end)
    return started, last
