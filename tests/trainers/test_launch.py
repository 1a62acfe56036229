"""A run from start to end: in place, under Ray Train, stopped, killed and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stoplab_platform.errors import CheckpointError, Fenced, Stopped
from stoplab_platform.fence import own
from stoplab_platform.files import read_json, write_json
from stoplab_platform.paths import Home, RunFolder
from stoplab_platform.scorebook import read_scores
from stoplab_platform.specs import RunSpec
from stoplab_platform.tracking import client
from stoplab_trainers import checkpoint
from stoplab_trainers.launch import execute
from stoplab_trainers.summary import Summary
from support_invariants import goes_on, has_logged
from support_runs import folder, identity, tiny
from support_shards import shard

DEADLINE_S = 120.0


def losses(run: RunFolder) -> dict[int, float]:
    """`train/loss` by step, as it was sent to the tracker."""
    found = {}
    for line in run.spool.read_text().splitlines():
        entry = json.loads(line)
        if "train/loss" in entry.get("values", {}):
            found[entry["step"]] = entry["values"]["train/loss"]
    return found


def test_a_run_leaves_scores_checkpoints_and_a_run_in_mlflow(
    tmp_path: Path, mlflow_uri: str
) -> None:
    run = folder(tmp_path)
    seen: list[dict[str, object]] = []
    summary = execute(tiny(), run, identity(), on_progress=seen.append)
    assert {"val/knn_top1", "test/knn_top1", "init/knn_top1", "pixels/knn_top1"} <= set(
        summary.metrics
    )
    assert summary.metrics["pixels/knn_top1"] > 0.9
    assert checkpoint.latest(run.checkpoints) is not None
    assert seen[-1]["step"] == seen[-1]["steps"] == summary.steps == 38
    told = read_json(run.predictions)
    right = [a == b for a, b in zip(told["test/knn_top1"], told["labels"], strict=True)]
    assert sum(right) / len(right) == pytest.approx(summary.metrics["test/knn_top1"])
    assert summary.mlflow_run_id is not None
    logged = client(mlflow_uri).get_run(summary.mlflow_run_id)
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics["test/knn_top1"] == summary.metrics["test/knn_top1"]
    assert logged.data.tags["stoplab.run_digest"] == summary.run_digest
    assert logged.data.tags["stoplab.protocols"] == summary.facts["protocols"] == "knn/3"
    files = [file.path for file in client(mlflow_uri).list_artifacts(summary.mlflow_run_id)]
    assert "evaluation.json" in files
    (score,) = (row for row in read_scores(run) if row.name == "test/knn_top1")
    assert score.low <= score.value == summary.metrics["test/knn_top1"] <= score.high
    assert logged.data.params["positions.noise_std"] == "0.25"
    measured = logged.data.metrics["mask/effective_ratio"]
    assert float(logged.data.tags["stoplab.masking_ratio"]) == pytest.approx(measured, abs=0.1)
    assert "loss" in run.rank_log(0).read_text()


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    run = folder(tmp_path)
    first = execute(tiny(optim__epochs=1, evals=[]), run, identity())
    spooled = run.spool.stat().st_size
    assert execute(tiny(optim__epochs=1, evals=[]), run, identity()) == first
    assert run.spool.stat().st_size == spooled


def test_a_run_that_was_killed_while_it_was_judged_tells_the_same(tmp_path: Path) -> None:
    run = folder(tmp_path)
    whole = execute(tiny(optim__epochs=1), run, identity())
    run.summary.unlink()
    again = execute(tiny(optim__epochs=1), run, identity())
    assert {"train/loss", "collapse/rankme", "test/knn_top1"} <= set(again.metrics)
    assert again.model_copy(update={"elapsed_s": whole.elapsed_s}) == whole


def test_a_stopped_run_saves_and_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    spec = tiny(evals=[])
    whole = execute(spec, folder(tmp_path, "whole"), identity())
    run = folder(tmp_path, "stopped")
    stop = tmp_path / "stop.json"

    def ask(progress: dict[str, object]) -> None:
        write_json(stop, {"intent": "PAUSED", "deadline_s": 60})

    with pytest.raises(Stopped) as stopped:
        execute(spec, run, identity(), stop_file=stop, on_progress=ask)
    assert stopped.value.intent == "PAUSED"
    newest = checkpoint.latest(run.checkpoints)
    assert newest is not None
    assert checkpoint.load(newest, identity=None)[0] == stopped.value.step < whole.steps
    stop.unlink()
    resumed = execute(spec, run, identity(), stop_file=stop)
    assert resumed.weights_sha256 == whole.weights_sha256
    assert resumed.certificate == whole.certificate


def test_a_run_whose_checkpoints_are_gone_says_that_it_starts_anew(tmp_path: Path) -> None:
    """As where the file system that holds them is not mounted."""
    run, stop, before = folder(tmp_path), tmp_path / "stop.json", "at step 7: it starts anew"
    for was in (0, 7):
        write_json(run.progress, {"step": was})
        write_json(stop, {"intent": "CANCELLED"})
        with pytest.raises(Stopped):
            execute(tiny(evals=[]), run, identity(), stop_file=stop)
        assert (before in run.rank_log(0).read_text()) == (was == 7)
        shutil.rmtree(run.checkpoints)


def test_a_run_that_became_another_says_what_has_changed(tmp_path: Path) -> None:
    run, stop, place = folder(tmp_path), tmp_path / "stop.json", tmp_path / "a.tar"
    spec = tiny(evals=[], data={"train": str(place), "image_size": 16})
    shard(place, range(128))
    write_json(stop, {"intent": "PAUSED"})
    with pytest.raises(Stopped):
        execute(spec, run, identity(), stop_file=stop)
    other = tiny(evals=[], data=spec.data.plain(), optim__lr=0.01, compute__accumulate=2, seed=7)
    with pytest.raises(
        CheckpointError, match=r"began: optim\.lr was 0\.001, is 0\.01, seed was 0, i"
    ):
        execute(other, run, identity(), stop_file=stop)
    shard(place, range(130))
    with pytest.raises(CheckpointError, match=r"what the shards of data\.train hold has changed"):
        execute(spec, run, identity(), stop_file=stop)
    run.spec.unlink()
    with pytest.raises(CheckpointError, match=r"belongs to run .* what has changed cannot be told"):
        execute(spec, run, identity(), stop_file=stop)


@pytest.mark.slow
@pytest.mark.invariant(21)
def test_a_killed_process_resumes_to_the_same_weights(tmp_path: Path, home: Path) -> None:
    spec = tiny(
        evals=[], optim__epochs=6, checkpoint__every_epochs=None, checkpoint__every_steps=23
    )
    path = tmp_path / "spec.yaml"
    path.write_text(spec.to_yaml())
    whole = _main(path, "j_whole", home)
    assert whole.wait(DEADLINE_S) == 0

    process = _main(path, "j_killed", home)
    run = RunFolder(home / "jobs" / "j_killed" / "runs" / "run")
    _until(lambda: any(run.checkpoints.glob("step-*")) or process.poll() is not None)
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not run.summary.exists()
    killed_at = has_logged(run)
    assert _main(path, "j_killed", home).wait(DEADLINE_S) == 0
    goes_on(run, killed_at, interval=23)
    ends = [
        Summary.model_validate_json((home / "jobs" / job / "runs/run/summary.json").read_text())
        for job in ("j_whole", "j_killed")
    ]
    assert ends[0].weights_sha256 == ends[1].weights_sha256
    assert ends[0].certificate == ends[1].certificate
    assert "resumed at step" in run.rank_log(0).read_text()


def _main(spec: Path, job: str, home: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "stoplab_trainers.main", str(spec)],
        env={**os.environ, "STOPLAB_JOB_ID": job, "STOPLAB_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def _until(condition: object) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(0.01)


@pytest.mark.ray
class TestUnderRayTrain:
    @pytest.mark.invariant(23)
    def test_two_workers_give_the_losses_of_one(self, tmp_path: Path) -> None:
        spec = tiny(optim__epochs=3, evals=[], checkpoint__every_epochs=None)
        execute(spec, folder(tmp_path, "one"), identity())
        two = self.two_workers(spec)
        summary = execute(two, folder(tmp_path, "two"), identity())
        assert summary.steps == 57
        one_losses = losses(folder(tmp_path, "one"))
        two_losses = losses(folder(tmp_path, "two"))
        assert list(one_losses) == list(two_losses)
        for step in range(1, 51):
            assert two_losses[step] == pytest.approx(one_losses[step], rel=1e-5)
        assert "loss" in folder(tmp_path, "two").rank_log(0).read_text()

    @pytest.mark.slow
    def test_a_stop_reaches_all_workers(self, tmp_path: Path) -> None:
        stop = tmp_path / "stop.json"
        write_json(stop, {"intent": "CANCELLED", "deadline_s": 5})
        with pytest.raises(Stopped):
            execute(self.two_workers(tiny(evals=[])), folder(tmp_path), identity(), stop_file=stop)

    @pytest.mark.slow
    def test_workers_of_an_overtaken_attempt_end_without_a_word(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job = Home(home).job("j_old")
        run = job.run("run")
        run.root.mkdir(parents=True)
        own(job, 2)
        monkeypatch.setenv("STOPLAB_JOB_ID", "j_old")
        monkeypatch.setenv("STOPLAB_ATTEMPT", "1")
        with pytest.raises(Fenced, match="a newer attempt owns"):
            execute(self.two_workers(tiny(evals=[])), run, identity())
        assert not run.spool.exists()

    @staticmethod
    def two_workers(spec: RunSpec) -> RunSpec:
        """The same run on two processes."""
        compute = spec.compute.model_copy(update={"workers": 2})
        return spec.model_copy(update={"compute": compute})
