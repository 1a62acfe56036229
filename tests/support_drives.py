"""A pretraining job's driver as a process, attempt after attempt, and what can be seen of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from stoplab_platform.fence import own
from stoplab_platform.files import read_json, read_lines
from stoplab_platform.paths import JobFolder, RunFolder
from stoplab_platform.specs import RunSpec
from stoplab_trainers.summary import Summary, summary_of
from support_store import wait_for

DEADLINE_S = 1500.0


class Drive:
    """The driver of one job; each start is the job's next attempt, which takes the folder."""

    def __init__(self, spec: RunSpec, job: str, home: Path, env: Mapping[str, str]) -> None:
        self.job, self.folder = job, JobFolder(home / "jobs" / job)
        self.run = self.folder.run("run")
        self.attempt = 0
        self._env = {**env, "STOPLAB_JOB_ID": job, "STOPLAB_HOME": str(home)}
        self.folder.root.mkdir(parents=True)
        self.folder.spec.write_text(spec.to_yaml())
        self.log = self.folder.root / "driver.log"

    def start(self) -> None:
        """As the platform does, but that nobody looks for what older attempts left."""
        self.attempt += 1
        own(self.folder, self.attempt)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stoplab_trainers.main", str(self.folder.spec)],
                env={**self._env, "STOPLAB_ATTEMPT": str(self.attempt)},
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def kill(self) -> int:
        """kill -9 of the driver alone."""
        assert self._process.poll() is None, self.tail()
        self._process.kill()
        self._process.wait()
        return self._process.pid

    def wait(self) -> int:
        """Until the driver ends; its exit code."""
        wait_for(lambda: self._process.poll() is not None, f"{self.job} ends", DEADLINE_S)
        return self._process.returncode

    def finish(self) -> Summary:
        """What the run came to; the driver ends well."""
        assert self.wait() == 0, self.tail()
        summary = summary_of(self.run)
        assert summary is not None
        return summary

    def close(self) -> None:
        """End the driver and all that was started for the job."""
        if self.attempt:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for process, _ in self.living():
            with suppress(psutil.Error):
                process.kill()

    def step(self) -> int:
        """As progress.json tells."""
        return int((read_json(self.run.progress) or {"step": 0})["step"])

    def group(self) -> int:
        """How often workers have taken the run on."""
        return int((read_json(self.run.group) or {"group": 0})["group"])

    def pid(self, rank: int) -> int:
        """Of the rank's process in the newest group, once it has said so."""

        def told() -> int:
            beat = read_json(self.run.beat(rank))
            return beat["pid"] if beat and beat["group"] == self.group() else 0

        return int(wait_for(told, f"rank {rank} lives", DEADLINE_S))

    def until(self, step: int) -> None:
        """Wait until the run has come to a step."""
        self.sees(lambda: self.step() >= step, f"step {step}")

    def sees(self, condition: Callable[[], object], what: str) -> None:
        """Wait while the driver lives."""
        wait_for(lambda: condition() or self._process.poll() is not None, what, DEADLINE_S)
        assert self._process.poll() is None, self.tail()

    def logged(self, metric: str) -> dict[int, float]:
        """A metric by step, as it was sent to the tracker."""
        return logged(self.run, metric)

    def resumed(self) -> list[int]:
        """The steps from which workers went on."""
        log = self.run.rank_log(0)
        words = log.read_text(errors="replace") if log.exists() else ""
        return [int(step) for step in re.findall(r"resumed at step (\d+)", words)]

    def living(self) -> Iterator[tuple[psutil.Process, str]]:
        """Processes of this job, of whichever attempt, and how each calls itself."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                words = process.cmdline()  # none of a process that is dead
                if words and process.environ().get("STOPLAB_JOB_ID") == self.job:
                    yield process, words[0].split()[0]

    def tail(self) -> str:
        """The driver's last words."""
        return self.log.read_text(errors="replace")[-3000:]


def logged(run: RunFolder, metric: str) -> dict[int, float]:
    """A metric by step, as a run sent it to the tracker; of a repeated step the last."""
    told = (line for line in read_lines(run.spool) if metric in line.get("values", {}))
    return {line["step"]: line["values"][metric] for line in told}
