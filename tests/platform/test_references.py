"""What people call a run, and which folder that is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from stoplab_platform.errors import CheckpointError, NotFound
from stoplab_platform.paths import RunFolder
from stoplab_platform.references import Found, find, referred
from stoplab_platform.settings import Settings
from stoplab_platform.specs.weights import CheckpointRef
from stoplab_platform.tracking import create_parent
from stoplab_platform.tracking.mlflow_runs import Runs
from support_mlflow import IDENTITY


def made(home: Path, job: str, *cells: str) -> Path:
    root = home / "jobs" / job
    for cell in cells:
        (root / "runs" / cell).mkdir(parents=True)
    return root


def test_a_jobs_only_run_by_every_name(home: Path) -> None:
    run = made(home, "j_1", "run") / "runs" / "run"
    newest = run / "checkpoints" / "step-00000003"
    newest.mkdir(parents=True)
    (newest / "manifest.json").write_text("{}")
    settings, expected = Settings(), Found(RunFolder(run))
    assert find("j_1", settings) == expected
    assert find("j_1/run", settings) == expected
    assert find(str(home / "jobs" / "j_1"), settings) == expected
    assert find(str(run), settings) == expected
    assert find(str(newest), settings) == Found(RunFolder(run), newest)
    assert referred(CheckpointRef(job="j_1"), settings) == expected
    assert referred(CheckpointRef(path=str(newest)), settings) == Found(RunFolder(run), newest)


def test_a_path_from_inside_a_steps_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = made(home, "j_1", "run") / "runs" / "run"
    for step in ("step-00000003", "step-00000005"):
        (run / "checkpoints" / step).mkdir(parents=True)
        (run / "checkpoints" / step / "manifest.json").write_text("{}")
    monkeypatch.chdir(run / "checkpoints" / "step-00000003")
    other = run / "checkpoints" / "step-00000005"
    assert find("../step-00000005", Settings()) == Found(RunFolder(run), other)


def test_a_studys_run_has_to_be_chosen(home: Path) -> None:
    root = made(home, "j_2", "stochastic-s0", "deterministic-s0")
    settings = Settings()
    expected = Found(RunFolder(root / "runs" / "stochastic-s0"))
    assert find("j_2/stochastic-s0", settings) == expected
    assert find("j_2", settings, cell="stochastic-s0") == expected
    assert find(str(root), settings, cell="stochastic-s0") == expected
    with pytest.raises(
        NotFound, match="name one of its runs, as j_2/CELL: deterministic-s0, stochastic-s0"
    ):
        find("j_2", settings)
    with pytest.raises(NotFound, match=r"no run 'stochastic-s1'.*: deterministic-s0"):
        find("j_2/stochastic-s1", settings)
    with pytest.raises(NotFound, match="name one of its runs"):
        referred(CheckpointRef(job="j_2"), settings)
    assert referred(CheckpointRef(job="j_2", cell="stochastic-s0"), settings) == expected


def test_a_run_of_mlflow(home: Path, mlflow_uri: str) -> None:
    root = made(home, "j_1", "a-s0", "a-s1")
    tags = {"stoplab.job_id": "j_1", "stoplab.cell": "a-s1"}
    opened = Runs(mlflow_uri).open({"experiment": "tests", "tags": tags, "params": {}})
    settings, expected = Settings(), Found(RunFolder(root / "runs" / "a-s1"))
    assert find(opened.run_id, settings) == expected
    assert referred(CheckpointRef(mlflow_run=opened.run_id), settings) == expected
    parent = create_parent(mlflow_uri, dataclasses.replace(IDENTITY, job_id="j_1"), {})
    with pytest.raises(NotFound, match="name one of its runs, as j_1/CELL: a-s0, a-s1"):
        find(parent.run_id, settings)
    with pytest.raises(NotFound, match="MLflow knows no run 00000000"):
        find("0" * 32, settings)


def test_what_names_nothing(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings()
    with pytest.raises(NotFound, match="'j_9' is no folder, no job in"):
        find("j_9", settings)
    made(home, "j_1", "run")
    for outside in ("../j_1", "..", ""):
        with pytest.raises(NotFound, match="there is no job"):
            referred(CheckpointRef(mlflow_run=None, job=outside or ".", path=None), settings)
    monkeypatch.setenv("STOPLAB_DATA_ROOTS", str(tmp_path / "data"))
    with pytest.raises(CheckpointError, match="STOPLAB_DATA_ROOTS"):
        find(str(home), settings)
    # What lies in the lab's own folders: by path for who types it, by its job for a spec.
    run = home / "jobs" / "j_1" / "runs" / "run"
    assert find(str(run), settings) == Found(RunFolder(run))
    with pytest.raises(CheckpointError, match="STOPLAB_DATA_ROOTS"):
        referred(CheckpointRef(path=str(run)), settings)
    assert referred(CheckpointRef(job="j_1"), settings) == Found(RunFolder(run))
