"""The trainers' command: exit codes, folders, evaluation of a finished run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from stoplab_platform.exits import Exit
from stoplab_platform.files import read_json
from stoplab_platform.paths import JobFolder
from stoplab_platform.references import find
from stoplab_platform.settings import Settings
from stoplab_trainers.main import main
from stoplab_trainers.weights.trained import open_trained
from support_runs import TINY


def written(path: Path, data: object) -> str:
    path.write_text(yaml.safe_dump(data))
    return str(path)


def test_a_spec_with_mistakes_is_refused_with_all_of_them(
    tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = written(tmp_path / "s.yaml", {**TINY, "colour": 1, "seed": -1})
    assert main([spec]) == Exit.BAD_INPUT
    said = capsys.readouterr().out
    assert "colour: unknown field" in said
    assert "seed: -1" in said
    assert not (home / "jobs").exists()


def test_missing_shards_have_a_code_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = written(tmp_path / "s.yaml", {**TINY, "evals": []})
    assert main([spec, "--set", "data.train=/nowhere/a-{000..001}.tar"]) == Exit.NO_DATA
    assert "/nowhere/a-000.tar" in capsys.readouterr().out


def test_an_asked_for_stop_ends_with_its_own_code(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOPLAB_JOB_ID", "j_stop")
    job = JobFolder(home / "jobs" / "j_stop")
    job.root.mkdir(parents=True)
    job.stop.write_text(json.dumps({"intent": "CANCELLED"}))
    assert main([written(tmp_path / "s.yaml", TINY)]) == Exit.STOPPED
    assert not job.run("run").summary.exists()


def test_a_finished_job_can_be_evaluated_again(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOPLAB_JOB_ID", "j_train")
    assert main([written(tmp_path / "s.yaml", TINY), "--set", "optim.epochs=1"]) == Exit.OK
    trained = read_json(JobFolder(home / "jobs" / "j_train").run("run").summary)
    probe = {
        "kind": "evaluate",
        "name": "probe",
        "checkpoint": {"job": "j_train"},
        "data": {"train": "digits/train", "test": "digits/test", "val_fraction": 0.2},
        "protocols": [{"kind": "knn"}],
    }
    kept = set((home / "cache" / "features").glob("*.npy"))
    monkeypatch.setenv("STOPLAB_JOB_ID", "j_probe")
    assert main([written(tmp_path / "p.yaml", probe)]) == Exit.OK
    assert kept
    assert set((home / "cache" / "features").glob("*.npy")) == kept, "no image was run again"
    assert (home / "jobs" / "j_probe" / "runs" / "run" / "evaluation.json").exists()
    probed = read_json(JobFolder(home / "jobs" / "j_probe").run("run").summary)
    assert probed["metrics"]["test/knn_top1"] == trained["metrics"]["test/knn_top1"]
    assert probed["steps"] == trained["steps"]
    # One name, one hash: as exports of the same encoder carry it.
    exported = open_trained(find("j_train", Settings())).provenance["encoder_sha256"]
    assert probed["facts"]["encoder_sha256"] == exported
    assert probed["weights_sha256"] == ""

    # At another size: the table of positions is made for it, the rest is the same encoder.
    monkeypatch.setenv("STOPLAB_JOB_ID", "j_larger")
    larger = [written(tmp_path / "p.yaml", probe), "--set", "data.image_size=24"]
    assert main(larger) == Exit.OK
    seen = read_json(JobFolder(home / "jobs" / "j_larger").run("run").summary)["metrics"]
    assert 0.2 < seen["test/knn_top1"] != probed["metrics"]["test/knn_top1"]

    if not torch.cuda.is_available():  # what it asks for is where it computes
        monkeypatch.setenv("STOPLAB_JOB_ID", "j_gpu")
        assert main([*larger, "--set", "compute.gpus_per_worker=1"]) == Exit.FAILED
