"""MLflow away, MLflow back, and several processes that meet in one store."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from stoplab_platform.paths import RunFolder
from stoplab_platform.tracking import SpoolTracker, client, drain
from support_mlflow import (
    IDENTITY,
    PARAMS,
    MlflowServer,
    eventually,
    free_port,
    mlflow_server,
    only_run,
    points,
    runs,
    start_a_run,
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "jobs" / "j_1" / "runs" / "run")


@pytest.fixture
def store(mlflow_uri: str) -> MlflowClient:
    return client(mlflow_uri)


def test_mlflow_away_from_the_start_delays_nobody(
    folder: RunFolder, mlflow_uri: str, store: MlflowClient, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    tracker = SpoolTracker(folder, nowhere)
    began = time.monotonic()
    tracker.start(IDENTITY, PARAMS)
    for step in range(200):
        tracker.metrics(step, {"train/loss": float(step)})
    assert time.monotonic() - began < 2.0
    eventually(lambda: "does not answer" in caplog.text)
    began = time.monotonic()
    tracker.close(timeout_s=1.0)
    assert time.monotonic() - began < 3.0
    assert tracker.run_id is None
    assert not drain(folder, nowhere, timeout_s=0.5)
    assert drain(folder, mlflow_uri, timeout_s=30)
    assert len(points(store, only_run(store).info.run_id, "train/loss")) == 200


@pytest.mark.slow
def test_a_server_that_is_killed_and_comes_back(
    folder: RunFolder, tmp_path: Path, server: MlflowServer
) -> None:
    picture = tmp_path / "masks.png"
    picture.write_bytes(b"png")
    tracker = SpoolTracker(folder, server.uri)
    tracker.start(IDENTITY, PARAMS)
    tracker.artifact(picture)
    slowest, step = 0.0, 0

    def train_until(condition: Callable[[], object]) -> None:
        nonlocal slowest, step

        def one_step() -> object:
            nonlocal slowest, step
            began = time.monotonic()
            tracker.metrics(step, {"train/loss": float(step)})
            slowest, step = max(slowest, time.monotonic() - began), step + 1
            return condition()

        eventually(one_step, within_s=120)

    def sent() -> int:
        record = json.loads(folder.spool_sent.read_text()) if folder.spool_sent.exists() else {}
        return int(record.get("offset", 0))

    server.start()
    train_until(lambda: sent() > 3000)
    server.kill()
    away_from = step
    train_until(lambda: step > away_from + 100)
    server.start()
    train_until(lambda: sent() > 20_000)
    tracker.finish("FINISHED")
    tracker.close(timeout_s=60)
    store = client(server.uri)
    run = only_run(store)
    assert run.info.status == "FINISHED"
    history = store.get_metric_history(run.info.run_id, "train/loss")
    assert sorted(point.step for point in history) == list(range(step))
    assert [file.path for file in store.list_artifacts(run.info.run_id)] == ["masks.png"]
    assert slowest < 1.0


@pytest.fixture
def server(tmp_path: Path, mlflow_tables: Path) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path / "server", mlflow_tables) as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("tables", ["made", "missing"])
def test_processes_that_meet_in_one_store(tmp_path: Path, mlflow_uri: str, tables: str) -> None:
    uri = mlflow_uri if tables == "made" else f"sqlite:///{tmp_path}/new/mlflow.db"
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=start_a_run, args=(number, uri, str(tmp_path)))
        for number in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=180)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    store = client(uri)
    found = runs(store)
    assert len(found) == 4
    assert len({run.info.experiment_id for run in found}) == 1
    assert all(len(points(store, run.info.run_id, "train/loss")) == 20 for run in found)
