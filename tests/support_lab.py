"""The installed command, real labs, and what is left of them, for tests of the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from stoplab_api.lab_processes import MARK

COMMAND = (sys.executable, "-m", "stoplab_api.cli.main")


@dataclass(frozen=True)
class Stoplab:
    """`stoplab` in a process of its own, for one home."""

    home: Path
    folder: Path
    """The working folder."""
    env: Mapping[str, str] = field(default_factory=dict)

    def start(self, *words: object, **options: Any) -> subprocess.Popen[str]:
        """Start it; stdout and stderr are pipes."""
        env = {**os.environ, "STOPLAB_HOME": str(self.home), **self.env}
        if not self.env.get("MLFLOW_TRACKING_URI"):
            env.pop("MLFLOW_TRACKING_URI", None)
        return subprocess.Popen(
            [*COMMAND, *map(str, words)],
            cwd=self.folder,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def run(self, *words: object, code: int = 0, timeout_s: float = 240) -> str:
        """Run it to its end; its stdout."""
        with self.start(*words) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert process.returncode == code, f"{words}: {process.returncode}\n{out}\n{err}"
        return out

    def json(self, *words: object, code: int = 0, timeout_s: float = 240) -> Any:
        """Its one JSON document."""
        return json.loads(self.run(*words, "--json", code=code, timeout_s=timeout_s))

    def lab(self) -> dict[str, Any]:
        """What `lab.json` says; empty while there is none."""
        with suppress(FileNotFoundError):
            found: dict[str, Any] = json.loads((self.home / "lab.json").read_text())
            return found
        return {}

    def left(self) -> list[str]:
        """Processes of the home's lab that live."""
        return living(MARK, lambda value: value.partition("@")[2] == str(self.home))

    @contextmanager
    def up(self) -> Iterator[Stoplab]:
        """The lab in the background on ports that are free; taken down afterwards."""
        self.home.mkdir(exist_ok=True)
        self.json("up", "--detach", "--port", 0, "--mlflow-port", 0, "--ray-port", 0)
        try:
            yield self
            self.json("down")
        finally:
            self.clean()

    def clean(self) -> None:
        """Kill what a failed test left."""
        for line in self.left():
            with suppress(psutil.Error):
                psutil.Process(int(line.split()[0])).kill()


def living(variable: str, fits: Callable[[str], bool]) -> list[str]:
    """Number and command of each living process whose environment has a variable that fits."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            value = process.environ().get(variable)
            if value is not None and fits(value) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())[:200]}")
    return found


def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """The first true value of ``condition``; AssertionError when none comes."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("the condition did not come true")
