"""A real MLflow server, to be taken away and brought back, and looks into a store."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from mlflow import MlflowClient
from mlflow.entities import Run

from stoplab_platform.paths import RunFolder
from stoplab_platform.tracking import RunIdentity, SpoolTracker, drain

START_S = 120.0
IDENTITY = RunIdentity(
    job_id="j_1", kind="pretrain", name="first", experiment="tests", arm="stochastic",
    pair_id="s0", tags={"team": "vision"}, spec_digest="aa", run_digest="bb",
)  # fmt: skip
PARAMS = {"seed": 3, "positions": {"kind": "stochastic", "noise_std": 0.25}}


class MlflowServer:
    """`mlflow server` on a free port, with its store in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    @property
    def uri(self) -> str:
        """Where it answers, once it was started."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, or start it again at the same place; returns when it answers."""
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
            "--port", str(self._port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db",
            "--artifacts-destination", str(self._folder / "artifacts"),
        ]  # fmt: skip
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self._folder, start_new_session=True,
                env=_environment(),
            )  # fmt: skip
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "server.log").read_text()
            assert time.monotonic() < deadline, "MLflow did not start"
            time.sleep(0.1)

    def kill(self) -> None:
        """Kill it, its workers too, without a word."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False


@contextmanager
def mlflow_server(folder: Path, tables: Path) -> Iterator[MlflowServer]:
    """A server that is not started yet, on a copy of a store's tables."""
    folder.mkdir()
    shutil.copy(tables, folder / "mlflow.db")
    server = MlflowServer(folder)
    try:
        yield server
    finally:
        server.kill()


def start_a_run(number: int, uri: str, root: str) -> None:
    """Spool a run and send it: one of several processes that meet in a store."""
    tracker = SpoolTracker(RunFolder(Path(root) / str(number)), None)
    identity = RunIdentity(
        job_id="j_1", kind="sweep", name=str(number), experiment="same", cell=str(number)
    )
    tracker.start(identity, {})
    for step in range(20):
        tracker.metrics(step, {"train/loss": float(step)})
    tracker.close()
    assert drain(RunFolder(Path(root) / str(number)), uri, timeout_s=60)


def runs(store: MlflowClient, job_id: str = "j_1") -> list[Run]:
    """The runs of a job, in any experiment."""
    experiments = [e.experiment_id for e in store.search_experiments()]
    return list(store.search_runs(experiments, f"tags.`stoplab.job_id` = '{job_id}'"))


def only_run(store: MlflowClient) -> Run:
    """The one run of the job `j_1`."""
    (run,) = runs(store)
    return run


def points(store: MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    """A metric as (step, value), by step."""
    return sorted((m.step, m.value) for m in store.get_metric_history(run_id, name))


def eventually(condition: Callable[[], object], within_s: float = 60.0) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def free_port() -> int:
    """A port that nobody holds right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _environment() -> dict[str, str]:
    return {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
