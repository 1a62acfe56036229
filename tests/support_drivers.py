"""A study's driver in a process group of its own, for tests that kill it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stoplab_platform.ledger import Cell, Ledger
from stoplab_platform.paths import Home, JobFolder

DEADLINE_S = 280
TESTS = Path(__file__).parent


def written(folder: Path, spec: Any) -> Path:
    path = folder / "spec.yaml"
    path.write_text(spec.to_yaml())
    return path


class Driver:
    """`python -m stoplab_sweeps.main`, or another module, in a process group of its own."""

    def __init__(
        self,
        spec: Any,
        tmp_path: Path,
        home: Path,
        job_id: str = "j_ray",
        module: str = "stoplab_sweeps.main",
    ) -> None:
        self.folder: JobFolder = Home(home).job(job_id)
        self._log = tmp_path / "driver.log"
        self._command = [sys.executable, "-m", module, str(written(tmp_path, spec))]
        paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._env = {
            **os.environ,
            "STOPLAB_HOME": str(home),
            "STOPLAB_JOB_ID": job_id,
            "PYTHONPATH": os.pathsep.join(paths),
        }

    def start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command, env=self._env, stdout=log, stderr=log, start_new_session=True
            )

    def run(self) -> int:
        process = self.start()
        try:
            return process.wait(DEADLINE_S)
        finally:
            if process.poll() is None:
                self.kill(process)

    def cells(self) -> dict[str, Cell]:
        return {cell.id: cell for cell in Ledger(self.folder).cells()}

    def states(self) -> list[str]:
        return [cell.state.value for cell in self.cells().values()]

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill the driver and what it started, as a machine that goes down does."""
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def starts(self) -> dict[str, int]:
        """How often each run was started, where `support_counted` runs them."""
        files = self.folder.root.glob("runs/*/starts")
        return {file.parent.name: len(file.read_text().splitlines()) for file in files}

    def log(self) -> str:
        return self._log.read_text()


def until(condition: Callable[[], Any], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it took too long"
        assert process is None or process.poll() is None, "the driver ended early"
        time.sleep(0.05)
