"""The spool and MLflow: nothing lost, nothing doubled, nobody disturbed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from stoplab_platform.errors import TrackerUnavailable
from stoplab_platform.paths import RunFolder
from stoplab_platform.tracking import (
    MemoryTracker,
    RunIdentity,
    SpoolTracker,
    Tracker,
    client,
    create_parent,
    drain,
    finish_runs,
    flatten,
)
from support_mlflow import IDENTITY, PARAMS, free_port, only_run, points, runs


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "jobs" / "j_1" / "runs" / "run")


@pytest.fixture
def store(mlflow_uri: str) -> MlflowClient:
    return client(mlflow_uri)


def said(folder: RunFolder) -> list[dict[str, Any]]:
    return [json.loads(line) for line in folder.spool.read_text().splitlines()]


class TrackerContract:
    """What every tracker does, seen when it is closed."""

    def open(self) -> Tracker:
        raise NotImplementedError

    def close(self, tracker: Tracker) -> tuple[dict[str, list[tuple[int, float]]], dict[str, str]]:
        """Points by metric, and tags."""
        raise NotImplementedError

    def test_metrics_and_tags_arrive(self) -> None:
        tracker = self.open()
        tracker.start(IDENTITY, PARAMS)
        tracker.metrics(1, {"train/loss": 0.5, "train/lr": 1e-3})
        tracker.metrics(2, {"train/loss": 0.25})
        tracker.tags({"stoplab.weights_sha256": "cc"})
        tracker.finish("FINISHED")
        metrics, tags = self.close(tracker)
        assert metrics["train/loss"] == [(1, 0.5), (2, 0.25)]
        assert metrics["train/lr"] == [(1, 1e-3)]
        assert tags["stoplab.arm"] == "stochastic"
        assert tags["stoplab.weights_sha256"] == "cc"
        assert tags["team"] == "vision"

    def test_a_step_is_said_once(self) -> None:
        tracker = self.open()
        tracker.start(IDENTITY, PARAMS)
        tracker.metrics(5, {"train/loss": 0.5})
        tracker.metrics(4, {"train/loss": 9.0, "train/lr": 1.0})
        tracker.metrics(5, {"train/loss": 9.0})
        metrics, _ = self.close(tracker)
        assert metrics == {"train/loss": [(5, 0.5)], "train/lr": [(4, 1.0)]}

    def test_closing_twice_is_fine(self) -> None:
        tracker = self.open()
        tracker.start(IDENTITY, PARAMS)
        tracker.close()
        tracker.close()


class TestMemoryTracker(TrackerContract):
    def open(self) -> Tracker:
        return MemoryTracker()

    def close(self, tracker: Tracker) -> tuple[dict[str, list[tuple[int, float]]], dict[str, str]]:
        assert isinstance(tracker, MemoryTracker)
        return tracker.history, tracker.tagged


class TestSpoolTracker(TrackerContract):
    @pytest.fixture(autouse=True)
    def _place(self, folder: RunFolder, mlflow_uri: str, store: MlflowClient) -> None:
        self._folder, self._uri, self._store = folder, mlflow_uri, store

    def open(self) -> Tracker:
        return SpoolTracker(self._folder, self._uri)

    def close(self, tracker: Tracker) -> tuple[dict[str, list[tuple[int, float]]], dict[str, str]]:
        tracker.close()
        run = only_run(self._store)
        metrics = {name: points(self._store, run.info.run_id, name) for name in run.data.metrics}
        return metrics, run.data.tags


def test_a_run_in_mlflow_says_who_it_is(
    folder: RunFolder, mlflow_uri: str, store: MlflowClient, tmp_path: Path
) -> None:
    picture = tmp_path / "masks.png"
    picture.write_bytes(b"png")
    tracker = SpoolTracker(folder, mlflow_uri)
    assert tracker.run_id is None
    tracker.start(IDENTITY, PARAMS)
    tracker.artifact(picture)
    tracker.artifact(picture, "reproduce")
    tracker.finish("KILLED")
    tracker.close()
    run = only_run(store)
    assert run.info.run_id == tracker.run_id
    sent = json.loads(folder.spool_sent.read_text())
    assert sent["experiment_id"] == run.info.experiment_id
    assert run.info.run_name == "first"
    assert run.info.status == "KILLED"
    assert run.data.params == {
        "seed": "3", "positions.kind": "stochastic", "positions.noise_std": "0.25",
    }  # fmt: skip
    expected = {
        "stoplab.job_id": "j_1", "stoplab.kind": "pretrain", "stoplab.cell": "run",
        "stoplab.arm": "stochastic", "stoplab.pair_id": "s0", "stoplab.attempt": "1",
        "stoplab.spec_digest": "aa", "stoplab.run_digest": "bb", "team": "vision",
    }  # fmt: skip
    assert expected.items() <= run.data.tags.items()
    assert "mlflow.parentRunId" not in run.data.tags
    assert store.get_experiment(run.info.experiment_id).name == "tests"
    assert [file.path for file in store.list_artifacts(run.info.run_id)] == [
        "masks.png", "reproduce",
    ]  # fmt: skip
    assert Path(run.info.artifact_uri).is_relative_to(tmp_path), "not in the working folder"


def test_files_of_an_experiment_that_a_server_made(
    folder: RunFolder, mlflow_uri: str, store: MlflowClient, tmp_path: Path
) -> None:
    """A lab's server serves them from `artifacts`; without it they go there all the same."""
    store.create_experiment("tests", "mlflow-artifacts:/7")
    picture = tmp_path / "masks.png"
    picture.write_bytes(b"png")
    tracker = SpoolTracker(folder, mlflow_uri)
    tracker.start(IDENTITY, PARAMS)
    tracker.artifact(picture, "pictures")
    tracker.close()
    place = tmp_path / "artifacts" / "7" / str(tracker.run_id) / "artifacts" / "pictures"
    assert (place / "masks.png").read_bytes() == b"png"


def test_points_keep_the_time_at_which_they_were_said(
    folder: RunFolder, mlflow_uri: str, store: MlflowClient
) -> None:
    before = int(time.time() * 1000)
    tracker = SpoolTracker(folder, None)
    tracker.start(IDENTITY, {})
    tracker.metrics(7, {"train/loss": 1.0})
    tracker.close()
    after = int(time.time() * 1000)
    assert drain(folder, mlflow_uri, timeout_s=30)
    run = only_run(store)
    (point,) = store.get_metric_history(run.info.run_id, "train/loss")
    assert before <= run.info.start_time <= point.timestamp <= after


def test_without_an_address_all_stays_in_the_spool(folder: RunFolder) -> None:
    tracker = SpoolTracker(folder, None)
    tracker.start(IDENTITY, PARAMS)
    tracker.metrics(1, {"train/loss": math.nan})
    tracker.close()
    assert tracker.run_id is None
    assert [line["verb"] for line in said(folder)] == ["start", "metrics"]


def test_a_resumed_run_goes_on_in_the_same_run(
    folder: RunFolder, mlflow_uri: str, store: MlflowClient
) -> None:
    first = SpoolTracker(folder, mlflow_uri)
    first.start(IDENTITY, PARAMS)
    for step in (1, 2, 3):
        first.metrics(step, {"train/loss": 1.0 / step})
    first.finish("FAILED")
    first.close()
    second = SpoolTracker(folder, mlflow_uri)
    second.start(RunIdentity(**{**vars(IDENTITY), "attempt": 2}), {"seed": 999})
    for step in (2, 3, 4):
        second.metrics(step, {"train/loss": 10.0 / step, "val/knn_top1": 0.5})
    second.close()
    run = only_run(store)
    assert run.info.status == "RUNNING"
    assert run.data.params["seed"] == "3"
    assert run.data.tags["stoplab.attempt"] == "2"
    assert points(store, run.info.run_id, "train/loss") == [
        (1, 1.0),
        (2, 0.5),
        (3, 1 / 3),
        (4, 2.5),
    ]
    assert points(store, run.info.run_id, "val/knn_top1") == [(2, 0.5), (3, 0.5), (4, 0.5)]


def test_a_line_that_a_kill_cut_off_is_dropped(
    folder: RunFolder, mlflow_uri: str, store: MlflowClient
) -> None:
    tracker = SpoolTracker(folder, None)
    tracker.start(IDENTITY, PARAMS)
    tracker.metrics(1, {"train/loss": 1.0})
    tracker.close()
    with folder.spool.open("a") as file:
        file.write('{"at": 1, "verb": "metrics", "step": 2, "val')
    assert drain(folder, mlflow_uri, timeout_s=30), "whole lines are sent, the torn one is not"
    resumed = SpoolTracker(folder, mlflow_uri)
    resumed.start(IDENTITY, PARAMS)
    resumed.metrics(2, {"train/loss": 2.0})
    resumed.close()
    assert points(store, only_run(store).info.run_id, "train/loss") == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("broken", ["start", "metrics"])
def test_a_broken_line_is_passed_over(
    folder: RunFolder, mlflow_uri: str, store: MlflowClient, broken: str
) -> None:
    tracker = SpoolTracker(folder, None)
    tracker.start(IDENTITY, PARAMS)
    tracker.metrics(1, {"train/loss": 1.0})
    tracker.metrics(2, {"train/loss": 0.5})
    tracker.close()
    lines = folder.spool.read_text().splitlines(keepends=True)
    torn = 0 if broken == "start" else 1
    lines[torn] = lines[torn][:30] + lines.pop(torn + 1)
    folder.spool.write_text("".join(lines))
    resumed = SpoolTracker(folder, mlflow_uri)
    resumed.start(IDENTITY, PARAMS)
    resumed.metrics(3, {"train/loss": 0.25})
    resumed.close()
    found = points(store, only_run(store).info.run_id, "train/loss")
    assert found[-1] == (3, 0.25)
    assert (1, 1.0) not in found


def test_a_full_disk_leaves_whole_lines(folder: RunFolder) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path;"
        "from stoplab_platform.paths import RunFolder;"
        "from stoplab_platform.tracking import SpoolTracker;"
        "from support_mlflow import IDENTITY, PARAMS;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); folder = RunFolder(Path(sys.argv[1]));"
        "t = SpoolTracker(folder, None); t.start(IDENTITY, PARAMS);"
        "full = folder.spool.stat().st_size + 30; free = resource.RLIM_INFINITY\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (full, free))\n"
        "try: t.metrics(1, {'train/loss': 1.0}); sys.exit('written')\n"
        "except OSError: resource.setrlimit(resource.RLIMIT_FSIZE, (free, free))\n"
        "t.metrics(2, {'train/loss': 0.5})\n"
    )
    here = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    subprocess.run([sys.executable, "-c", code, str(folder.root)], check=True, env=env)
    assert [line.get("step") for line in said(folder)] == [None, 2]


@pytest.mark.parametrize("known", ["nothing", "the run", "a part"])
def test_a_kill_between_sending_and_recording_doubles_nothing(
    folder: RunFolder, mlflow_uri: str, store: MlflowClient, known: str
) -> None:
    tracker = SpoolTracker(folder, mlflow_uri)
    tracker.start(IDENTITY, PARAMS)
    for step in range(50):
        tracker.metrics(step, {"train/loss": math.sin(step), "odd": math.nan})
    tracker.tags({"word": "said"})
    tracker.finish("FINISHED")
    tracker.close()
    before = only_run(store)
    lines = folder.spool.read_bytes().splitlines(keepends=True)
    if known == "nothing":
        folder.spool_sent.unlink()
    else:
        offset = sum(map(len, lines[: 1 if known == "the run" else 20]))
        record = {"offset": offset, "run_id": before.info.run_id}
        folder.spool_sent.write_text(json.dumps(record))
    assert drain(folder, mlflow_uri, timeout_s=30)
    after = only_run(store)
    assert after.info == before.info or vars(after.info) == vars(before.info)
    history = store.get_metric_history(after.info.run_id, "train/loss")
    assert [point.step for point in history] == list(range(50))
    assert len(store.get_metric_history(after.info.run_id, "odd")) == 50
    assert json.loads(folder.spool_sent.read_text())["offset"] == folder.spool.stat().st_size


def test_more_than_mlflow_takes_at_once(
    folder: RunFolder, mlflow_uri: str, store: MlflowClient
) -> None:
    tracker = SpoolTracker(folder, None)
    tracker.start(IDENTITY, {f"p{i}": "x" * 7000 for i in range(250)})
    tracker.metrics(1, {f"m{i}": float(i) for i in range(1500)})
    for step in range(2, 1202):
        tracker.metrics(step, {"train/loss": float(step)})
    tracker.close()
    assert drain(folder, mlflow_uri, timeout_s=60)
    run = only_run(store)
    assert len(run.data.params) == 250
    assert len(run.data.metrics) == 1501
    assert len(points(store, run.info.run_id, "train/loss")) == 1200


def test_what_mlflow_refuses_blocks_nothing_that_follows(
    folder: RunFolder, mlflow_uri: str, store: MlflowClient, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    gone = tmp_path / "gone.png"
    gone.write_bytes(b"")
    tracker = SpoolTracker(folder, None)
    tracker.start(IDENTITY, {"a@b": "odd key"})
    tracker.artifact(gone)
    tracker.metrics(1, {"train/loss": 1.0})
    tracker.metrics(1, {"m" * 300: 1.0})
    tracker.metrics(2, {"train/loss": 2.0})
    tracker.close()
    gone.unlink()
    assert drain(folder, mlflow_uri, timeout_s=30)
    run = only_run(store)
    assert points(store, run.info.run_id, "train/loss") == [(1, 1.0), (2, 2.0)]
    assert run.data.params == {"a_b": "odd key"}
    assert "refused artifact" in caplog.text
    assert "refused metrics" in caplog.text


def test_a_parent_takes_in_the_runs_of_its_job(
    tmp_path: Path, mlflow_uri: str, store: MlflowClient
) -> None:
    study = RunIdentity(job_id="j_2", kind="compare", name="study", experiment="tests")
    orphan = SpoolTracker(RunFolder(tmp_path / "a"), mlflow_uri)
    orphan.start(RunIdentity(**{**vars(study), "cell": "a-s0"}), {})
    orphan.close()
    parent = create_parent(mlflow_uri, study, {"name": "study"}).run_id
    child = SpoolTracker(RunFolder(tmp_path / "b"), mlflow_uri)
    child.start(RunIdentity(**{**vars(study), "cell": "b-s0", "parent_run_id": parent}), {})
    child.close()
    assert create_parent(mlflow_uri, study, {"name": "study"}).run_id == parent
    by_cell = {run.data.tags["stoplab.cell"]: run for run in runs(store, "j_2")}
    assert set(by_cell) == {"parent", "a-s0", "b-s0"}
    assert "mlflow.parentRunId" not in by_cell["parent"].data.tags
    for cell in ("a-s0", "b-s0"):
        assert by_cell[cell].data.tags["mlflow.parentRunId"] == parent


def test_finish_runs_ends_what_still_runs_in_any_experiment(
    tmp_path: Path, mlflow_uri: str, store: MlflowClient
) -> None:
    for name, experiment, end in (("a", "one", None), ("b", "two", None), ("c", "one", "FAILED")):
        identity = RunIdentity(
            job_id="j_3", kind="sweep", name=name, experiment=experiment, cell=name
        )
        tracker = SpoolTracker(RunFolder(tmp_path / name), mlflow_uri)
        tracker.start(identity, {})
        if end == "FAILED":
            tracker.finish("FAILED")
        tracker.close()
    other = SpoolTracker(RunFolder(tmp_path / "other"), mlflow_uri)
    other.start(IDENTITY, {})
    other.close()
    assert finish_runs(mlflow_uri, "j_3", "KILLED") == 2
    assert finish_runs(mlflow_uri, "j_3", "KILLED") == 0
    status = {run.info.run_name: run.info.status for run in runs(store, "j_3")}
    assert status == {"a": "KILLED", "b": "KILLED", "c": "FAILED"}
    assert only_run(store).info.status == "RUNNING"


def test_no_mlflow_is_said_in_our_own_words() -> None:
    with pytest.raises(TrackerUnavailable):
        finish_runs(f"http://127.0.0.1:{free_port()}", "j_1", "FINISHED")


def test_flatten() -> None:
    plain = {"a": {"b": {"c": 1}, "d": [1, 2.5]}, "e": None, "f": True, "g": "é", "h": {}}
    assert flatten(plain) == {
        "a.b.c": "1", "a.d": "[1, 2.5]", "e": "null", "f": "true", "g": "é", "h": "{}",
    }  # fmt: skip
