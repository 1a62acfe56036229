"""A retry goes on from the checkpoints of the run before it; a fenced run writes nothing more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from stoplab_platform.adoption import adopt
from stoplab_platform.errors import Fenced, Stopped
from stoplab_platform.fence import own
from stoplab_platform.files import read_lines, write_json
from stoplab_platform.jobs.models import Job
from stoplab_platform.jobs.states import State
from stoplab_platform.paths import Home
from stoplab_platform.specs import RunSpec
from stoplab_platform.tracking import client
from stoplab_trainers import hooks
from stoplab_trainers.checkpoint import latest
from stoplab_trainers.launch import execute
from support_runs import identity, tiny

OLD, NEW = "j_old", "j_new"


def retry_of(spec: RunSpec) -> Job:
    """The job of a retry, as the reconciler has it."""
    return Job(
        id=NEW, kind="pretrain", name="n", project="p", owner="o", labels={}, priority=0,
        spec=spec.plain(), spec_digest="", run_digest=None, retry_of=OLD, extends=None, limits={},
        version=1, attempt=1, state=State.STARTING, intent=None, reason_code=None, message=None,
        created_at=datetime.now(UTC), started_at=None, finished_at=None, settled=False,
        hidden=False,
    )  # fmt: skip


def stopped(spec: RunSpec, home: Home, intent: str) -> None:
    """A run that was stopped in the middle."""
    folder = home.job(OLD)

    def ask(progress: Mapping[str, Any]) -> None:
        if progress["step"] >= 5:
            write_json(folder.stop, {"intent": intent})

    with pytest.raises(Stopped):
        execute(spec, folder.run("run"), replace(identity(), job_id=OLD),
                stop_file=folder.stop, on_progress=ask)  # fmt: skip


@pytest.fixture(autouse=True)
def _told_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "PROGRESS_S", 0.0)


@pytest.mark.slow
def test_a_retry_ends_with_the_weights_of_an_undisturbed_run(
    tmp_path: Path, home: Path, mlflow_uri: str
) -> None:
    lab, spec = Home(home), tiny()
    whole = execute(spec, lab.job("j_whole").run("run"), replace(identity(), job_id="j_whole"))
    stopped(spec, lab, "FAILED")
    more = tiny(limits__wall_hours=3)
    adopt(retry_of(more), lab)
    folder = lab.job(NEW).run("run")
    assert latest(folder.checkpoints) is not None
    shutil.rmtree(lab.job(OLD).root)  # as when it is deleted
    summary = execute(more, folder, replace(identity(), job_id=NEW))
    assert "resumed at step" in folder.rank_log(0).read_text()
    assert summary.weights_sha256 == whole.weights_sha256
    assert summary.run_digest == whole.run_digest
    mlflow = client(mlflow_uri)
    runs = mlflow.search_runs(["1"], f"tags.`stoplab.job_id` = '{NEW}'")
    assert [run.info.run_id for run in runs] == [summary.mlflow_run_id]
    (run,) = runs
    assert run.info.status == "FINISHED"
    assert run.data.params["limits.wall_hours"] == "3.0"
    steps = [point.step for point in mlflow.get_metric_history(run.info.run_id, "train/loss")]
    wanted = mlflow.get_metric_history(str(whole.mlflow_run_id), "train/loss")
    assert steps == [point.step for point in wanted]


def test_the_tracker_hears_how_a_run_at_its_limit_ended(home: Path, mlflow_uri: str) -> None:
    lab = Home(home)
    stopped(tiny(), lab, "FAILED")
    (run,) = client(mlflow_uri).search_runs(["1"])
    assert run.info.status == "FAILED"


@pytest.mark.parametrize("reason", ["DIVERGED", "COLLAPSED"])
def test_what_is_spoilt_is_begun_anew(home: Path, reason: str) -> None:
    lab, spec = Home(home), tiny()
    old = lab.job(OLD).run("run")
    (old.checkpoints / "step-00000001").mkdir(parents=True)
    old.spool.write_text(json.dumps({"verb": "start", "tags": {}, "params": {}}) + "\n")
    result = {"attempt": 1, "exit_code": 1, "outcome": "FAILED", "reason_code": reason,
              "finished_at": datetime.now(UTC).isoformat()}  # fmt: skip
    write_json(lab.job(OLD).result, result)
    adopt(retry_of(spec), lab)
    assert not lab.job(NEW).run("run").root.exists()
    write_json(lab.job(OLD).result, {**result, "reason_code": "RUN_ERROR"})
    adopt(retry_of(spec), lab)
    assert (lab.job(NEW).run("run").checkpoints / "step-00000001").exists()


def test_a_run_whose_folder_is_a_newer_attempts_ends_without_a_word(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "FENCE_S", 0.0)
    monkeypatch.setenv("STOPLAB_JOB_ID", OLD)
    monkeypatch.setenv("STOPLAB_ATTEMPT", "1")
    folder = Home(home).job(OLD)
    own(folder, 1)

    def go_on_elsewhere(progress: Mapping[str, Any]) -> None:
        if progress["step"] == 5:
            own(folder, 2)

    run = folder.run("run")
    spec = tiny(checkpoint__every_epochs=None, checkpoint__every_steps=4)
    with pytest.raises(Fenced):
        execute(spec, run, identity(), stop_file=folder.stop, on_progress=go_on_elsewhere)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000004"]
    assert "finish" not in [line["verb"] for line in read_lines(run.spool)]
    assert not run.summary.exists()
