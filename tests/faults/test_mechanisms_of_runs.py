"""The promises about runs, I4, I5, I7 and I9, with their mechanism taken out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stoplab_platform.errors import Stopped, TrackerUnavailable
from stoplab_platform.files import write_json
from stoplab_platform.handoff import read_heartbeat
from stoplab_platform.paths import JobFolder, RunFolder
from stoplab_platform.tracking import SpoolTracker, client, drain, spool
from stoplab_platform.tracking.mlflow_runs import Runs
from stoplab_platform.tracking.sender import Sender
from stoplab_trainers import checkpoint
from stoplab_trainers.launch import execute
from support_invariants import (
    goes_on,
    has_logged,
    is_whole,
)
from support_mechanisms import both_ways, fails, supervised
from support_mlflow import IDENTITY
from support_runs import folder as run_folder
from support_runs import identity, tiny
from support_store import wait_for

pytestmark = pytest.mark.slow


class TestKillCostsOneInterval:
    """I4: an attempt goes on from the newest checkpoint."""

    EVERY = 20

    @both_ways
    def test_kill_9_of_a_training(self, tmp_path: Path, home: Path, out: bool) -> None:
        spec = tiny(
            evals=[],
            optim__epochs=200,
            checkpoint__every_epochs=None,
            checkpoint__every_steps=self.EVERY,
        )
        path = tmp_path / "spec.yaml"
        path.write_text(spec.to_yaml())
        run = RunFolder(home / "jobs" / "j_1" / "runs" / "run")
        with self.training(path):
            wait_for(lambda: has_logged(run) > 2 * self.EVERY, "some steps", 120)
        killed_at, lines = has_logged(run), run.rank_log(0).read_text().count("  epoch ")
        with self.training(path, "checkpoint.newest = lambda *_: None" if out else ""):
            wait_for(lambda: run.rank_log(0).read_text().count("  epoch ") > lines, "a step", 120)
        print(f"killed at step {killed_at}, with a checkpoint every {self.EVERY}")
        with fails(out):
            goes_on(run, killed_at, self.EVERY)

    @contextmanager
    def training(self, spec: Path, patch: str = "") -> Iterator[None]:
        """A run of its own, until kill -9 at the end of the block."""
        start = "import sys; from stoplab_trainers import checkpoint, main\n"
        words = [sys.executable, "-c", f"{start}{patch}\nsys.exit(main.main())", str(spec)]
        env = {**os.environ, "STOPLAB_JOB_ID": "j_1"}
        process = subprocess.Popen(
            words, env=env, stdout=subprocess.DEVNULL, start_new_session=True
        )
        try:
            yield
            assert process.poll() is None, "it ended before it could be killed"
        finally:
            process.kill()
            process.wait()


class TestWordsAreKept:
    """I5: bytes go to the file as they come."""

    @both_ways
    def test_of_a_driver(self, home: Path, out: bool) -> None:
        folder = JobFolder(home / "jobs" / "j_1")
        said = home / "said"
        code = f"import os, time; os.write(1, b'last words'); open({str(said)!r}, 'w')"
        hold = "held = []; child._write = lambda place, data: held.append(data)" if out else ""
        with supervised(f"{code}; time.sleep(600)", hold):
            wait_for(said.exists, "the last words")
            beat = wait_for(lambda: read_heartbeat(folder), "a heartbeat")
            wait_for(lambda: read_heartbeat(folder) != beat, "a moment of life after them")
        with fails(out):
            assert "last words" in folder.driver_log.read_text()

    @both_ways
    def test_of_a_rank(self, tmp_path: Path, out: bool) -> None:
        run = run_folder(tmp_path)
        hold = "logging.StreamHandler.flush = lambda _: None" if out else ""
        code = (
            "import logging, os, pathlib, sys; from stoplab_trainers.rank import rank_log\n"
            f"from stoplab_platform.paths import RunFolder\n{hold}\n"
            "with rank_log(RunFolder(pathlib.Path(sys.argv[1])), 3):\n"
            "    logging.getLogger('stoplab.train').info('last words')\n"
            "    os.kill(os.getpid(), 9)"
        )
        done = subprocess.run([sys.executable, "-c", code, run.root], check=False)
        assert done.returncode == -signal.SIGKILL
        with fails(out):
            assert "last words" in run.rank_log(3).read_text()


class TestNothingLoggedIsLostOrDoubled:
    """I7: the spool is sent in order and as a whole; a resumed run repeats no point in it."""

    @both_ways
    def test_mlflow_is_away(
        self, tmp_path: Path, mlflow_uri: str, out: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = run_folder(tmp_path)
        send, apply = Sender._send, Runs.apply
        away = True

        def careless(self: Sender, *batch: Any) -> None:
            """Takes what could not be sent for sent."""
            try:
                send(self, *batch)
            except TrackerUnavailable:
                return

        def absent(self: Runs, *lines: Any) -> None:
            if away:
                raise TrackerUnavailable("away")
            apply(self, *lines)

        monkeypatch.setattr(Runs, "apply", absent)
        if out:
            monkeypatch.setattr(Sender, "_send", careless)
        tracker = SpoolTracker(run, None)
        tracker.start(IDENTITY, {})
        tracker.metrics(0, {"train/loss": 0.0})
        assert drain(run, mlflow_uri, 0) is out
        away = False
        tracker.metrics(1, {"train/loss": 1.0})
        tracker.close()
        assert drain(run, mlflow_uri, 30)
        with fails(out):
            is_whole(client(mlflow_uri), str(tracker.run_id), run)

    @both_ways
    def test_a_resumed_run_repeats_steps(
        self, tmp_path: Path, mlflow_uri: str, out: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = run_folder(tmp_path)

        def log(steps: Iterable[int]) -> str:
            """One process of the run; the id of its run in MLflow."""
            tracker = SpoolTracker(run, None)
            tracker.start(IDENTITY, {})
            for step in steps:
                tracker.metrics(step, {"train/loss": float(step)})
            tracker.close()
            assert drain(run, mlflow_uri, 30)
            return str(tracker.run_id)

        log(range(10))
        if out:  # it knows that the run has begun, and not what was logged
            monkeypatch.setattr(spool, "_what_is_there", lambda _: (True, {}))
        run_id = log(range(5, 20))  # the checkpoint was made after step 4
        with fails(out):
            is_whole(client(mlflow_uri), run_id, run)


class TestResumedWeights:
    """I9: a checkpoint holds all that the next step depends on."""

    @both_ways
    def test_of_a_stopped_run(
        self, tmp_path: Path, out: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        spec, stop, run = tiny(evals=[]), tmp_path / "stop.json", run_folder(tmp_path, "stopped")
        whole = execute(spec, run_folder(tmp_path, "whole"), identity())

        def ask(_: Mapping[str, Any]) -> None:
            write_json(stop, {"intent": "PAUSED", "deadline_s": 60})

        with pytest.raises(Stopped):
            execute(spec, run, identity(), stop_file=stop, on_progress=ask)
        stop.unlink()
        load = checkpoint.load

        def partly(path: Path, **words: Any) -> tuple[int, dict[str, Any]]:
            """All but the optimizer's moments."""
            step, state = load(path, **words)
            return step, state | {"optimizer": {**state["optimizer"], "state": {}}}

        if out:
            monkeypatch.setattr(checkpoint, "load", partly)
        resumed = execute(spec, run, identity(), stop_file=stop)
        with fails(out):
            assert resumed.weights_sha256 == whole.weights_sha256
