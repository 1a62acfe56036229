"""kill -9 at random steps of a run: each time it goes on, and ends with the same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stoplab_platform.files import read_json
from stoplab_platform.paths import RunFolder
from stoplab_trainers.summary import Summary, summary_of
from support_invariants import goes_on, has_logged
from support_runs import tiny
from support_store import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

DEADLINE_S = 300.0
EVERY = 7
EPOCHS = 30
STEPS = 19 * EPOCHS
LATE = 300  # steps that a run may make until a kill comes, on a busy machine
START = (
    "import sys; from stoplab_trainers import hooks, main\n"
    "hooks.PROGRESS_S = 0\n"  # the file tells of each step
    "sys.exit(main.main())"
)


class Process:
    """The training of one job, in a process group of its own."""

    def __init__(self, spec: Path, job: str, home: Path) -> None:
        self.folder = RunFolder(home / "jobs" / job / "runs" / "run")
        self.folder.progress.unlink(missing_ok=True)  # an earlier process' words
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, str(spec)],
            env={**os.environ, "STOPLAB_JOB_ID": job, "STOPLAB_HOME": str(home)},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def finish(self) -> Summary:
        assert self._process.wait(DEADLINE_S) == 0
        summary = summary_of(self.folder)
        assert summary is not None
        return summary

    def kill_at(self, step: int) -> None:
        """As soon as it tells that the step is done."""
        wait_for(lambda: self._step() >= step or self._over(), f"step {step}", DEADLINE_S)
        assert not self._over(), "it ended before it could be killed"
        self.kill()
        assert self._process.returncode == -signal.SIGKILL
        assert summary_of(self.folder) is None

    def kill(self) -> None:
        if not self._over():
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _over(self) -> bool:
        return self._process.poll() is not None

    def _step(self) -> int:
        return int((read_json(self.folder.progress) or {"step": 0})["step"])


@pytest.mark.invariant(21)
def test_ten_kills_at_random_steps_change_no_bit_of_the_weights(tmp_path: Path, home: Path) -> None:
    spec = tiny(
        evals=[],
        optim__epochs=EPOCHS,
        checkpoint__every_epochs=None,
        checkpoint__every_steps=EVERY,
    )
    path = tmp_path / "spec.yaml"
    path.write_text(spec.to_yaml())
    whole = Process(path, "j_whole", home).finish()
    assert whole.steps == STEPS
    points = np.sort(np.random.default_rng(0).choice(np.arange(1, STEPS - LATE), 10, replace=False))
    for point in points:
        process = Process(path, "j_killed", home)
        try:
            process.kill_at(int(point))
        finally:
            process.kill()
    killed_at = has_logged(process.folder)
    killed = Process(path, "j_killed", home).finish()
    goes_on(process.folder, killed_at, EVERY)
    resumes = process.folder.rank_log(0).read_text().count("resumed at step")
    assert resumes >= 1 + np.sum(points[:-1] > 2 * EVERY), "each process but the first goes on"
    assert killed.weights_sha256 == whole.weights_sha256
    assert killed.certificate == whole.certificate
