"""Encoders out of the lab: timm, safetensors, ONNX, MLflow, the official layout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnxruntime
import pytest
import timm
import torch
from safetensors import safe_open
from torch import Tensor

from stoplab_platform.exits import Exit
from stoplab_platform.files import write_atomic
from stoplab_platform.paths import JobFolder, RunFolder
from stoplab_platform.settings import Settings
from stoplab_platform.specs import RunSpec
from stoplab_platform.specs.weights import Start
from stoplab_platform.tracking import client, drain, sent_run_id
from stoplab_trainers import checkpoint
from stoplab_trainers.export import main
from stoplab_trainers.launch import execute
from stoplab_trainers.model.jepa import build_model, target_of
from stoplab_trainers.weights import checks, mlflow_model
from stoplab_trainers.weights.start import start_from
from support_mlflow import mlflow_server
from support_runs import identity, tiny
from support_weights import saved, target

TINY_NAMED: dict[str, Any] = {
    "model": {"encoder": "vit_tiny_patch16_224", "predictor": {"width": 24, "depth": 1}},
    "data__image_size": 32,
    "masking": {"kind": "random", "ratio": 0.5},
}


def exported(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What the command says of an export that went well."""
    assert main([*words, "--json"]) == Exit.OK
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refusal(capsys: pytest.CaptureFixture[str], *words: str, code: Exit = Exit.BAD_INPUT) -> str:
    capsys.readouterr()
    assert main(list(words)) == code
    return capsys.readouterr().err


def images(size: int, count: int = 4) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
@pytest.mark.parametrize(
    ("changes", "name", "ending"),
    [
        (TINY_NAMED, "vit_tiny_patch16_224", ".safetensors"),
        (TINY_NAMED, "vit_tiny_patch16_224", ".pth"),
        ({"model__depth": 3}, "vit_base_patch16_224", ".safetensors"),
        ({"model__encoder": "vit_base_patch16_clip_224"}, "vit_base_patch16_224", ".safetensors"),
        (
            {"model__encoder": "vit_base_patch16_clip_quickgelu_224", "model__init": "published"},
            "vit_base_patch16_224",
            ".safetensors",
        ),
    ],
)
def test_timm_gives_the_same_features(
    changes: dict[str, Any], name: str, ending: str, home: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    spec, state = saved(home, **changes)
    path = tmp_path / "out" / f"encoder{ending}"
    told = exported(capsys, "j_1", "--to", "timm", "--out", str(path))
    recipe = json.loads(path.with_suffix(".json").read_text())
    assert recipe["model"] == name
    batch, ours = images(spec.data.image_size), target(spec, state)
    made = timm.create_model(name, checkpoint_path=path, **recipe["arguments"]).eval()
    pasted = eval(told["load"], {"timm": timm})
    for model in (made, pasted):
        assert float((model(batch) - ours.features(batch)).abs().max()) <= 1e-6
    student = build_model(spec).encoder
    assert float((made(batch) - student.features(batch)).abs().max()) > 1e-3
    assert sorted(p.name for p in path.parent.iterdir()) == ["encoder.json", path.name]


@torch.no_grad()
def test_round_trips_to_the_bit(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours -> the authors' -> ours -> timm -> ours."""
    spec, state = saved(home)
    exported(capsys, "j_1", "--to", "official", "--out", str(tmp_path / "their.pth"))
    model = build_model(spec.model_copy(update={"seed": 5}))
    mean = target_of(model.encoder)
    start_from(Start(path=str(tmp_path / "their.pth")), model, mean)
    assert_equal(model.state_dict(), state["model"])
    assert_equal(mean.state_dict(), state["target"])
    run = JobFolder(home / "jobs" / "j_2").run("run")
    write_atomic(run.spec, spec.to_yaml())
    again = {"model": model.state_dict(), "target": mean.state_dict()}
    checkpoint.save(run.checkpoints, step=1, tensors=again, identity={}, keep=1)
    for kind in ("timm", "safetensors"):
        told = exported(capsys, "j_2", "--to", kind, "--out", str(tmp_path / kind))
        model = build_model(spec.model_copy(update={"seed": 6}))
        mean = target_of(model.encoder)
        start_from(Start(path=str(tmp_path / kind / "encoder.safetensors")), model, mean)
        assert_equal(mean.state_dict(), state["target"])
        assert_equal(model.encoder.state_dict(), state["target"])
        in_timm = eval(told["load"], {"timm": timm}).state_dict()
        assert_equal({f"vit.{n}": v for n, v in in_timm.items()}, state["target"])


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_safetensors_say_where_they_come_from(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tiny(optim__epochs=1)
    run = finished(home, spec)
    told = exported(capsys, "j_test", "--to", "safetensors", "--out", str(tmp_path / "out"))
    with safe_open(tmp_path / "out" / "encoder.safetensors", "pt") as file:
        metadata = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}
    assert metadata.pop("format") == "pt"
    assert metadata == told["provenance"]
    summary = json.loads(run.summary.read_text())
    assert metadata["run_digest"] == summary["run_digest"]
    assert metadata["spec_digest"] == spec.digest()
    assert metadata["encoder_sha256"] == checkpoint.weights_sha256(weights)
    assert (metadata["job_id"], metadata["step"]) == ("j_test", "19")
    assert metadata["mlflow_run_id"] == sent_run_id(run)
    assert metadata["stoplab_version"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| knn_top1 | test split | {summary['metrics']['test/knn_top1']:.4f} |" in card
    assert "timm.create_model('vit_base_patch16_224', checkpoint_path='encoder" in card
    assert "licence of `digits`" in card
    assert summary["run_digest"] in card


def finished(home: Path, spec: RunSpec) -> RunFolder:
    """A run that was trained, its run in MLflow written."""
    run = JobFolder(home / "jobs" / "j_test").run("run")
    run.root.mkdir(parents=True)
    execute(spec, run, identity())
    assert drain(run, Settings().tracking_uri, timeout_s=30)
    return run


@torch.no_grad()
@pytest.mark.parametrize("changes", [{**TINY_NAMED, "model__depth": 2}, {}])
def test_onnx_gives_features_and_patches_of_any_batch(
    changes: dict[str, Any], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, state = saved(home, **changes)
    path = tmp_path / "encoder.onnx"
    told = exported(capsys, "j_1", "--to", "onnx", "--out", str(path))
    assert told["difference"] <= 1e-4
    session = onnxruntime.InferenceSession(path)
    assert [o.name for o in session.get_outputs()] == ["features", "patches"]
    assert session.get_modelmeta().custom_metadata_map["step"] == "5"
    ours = target(spec, state)
    for count in (1, 2, 5):
        batch = images(spec.data.image_size, count)
        features, patches = session.run(None, {"images": batch.numpy()})
        np.testing.assert_allclose(features, ours.features(batch), atol=1e-4)
        np.testing.assert_allclose(patches, ours(batch), atol=1e-4)


def test_what_differs_is_not_exported(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(home)
    monkeypatch.setattr(checks, "TOLERANCE", 1e-12)
    for kind in ("onnx", "timm"):
        out = tmp_path / kind
        said = refusal(capsys, "j_1", "--to", kind, "--out", str(out), code=Exit.FAILED)
        assert "differ by" in said
        assert not list(out.iterdir())


def test_onnx_without_its_packages(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(home)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    said = refusal(capsys, "j_1", "--to", "onnx", "--out", str(tmp_path / "a.onnx"))
    assert "pip install 'stoplab[export]'" in said


@pytest.fixture
def tracking_uri_kept() -> Iterator[None]:
    before = mlflow.get_tracking_uri()
    yield
    mlflow.set_tracking_uri(before)


@pytest.mark.usefixtures("tracking_uri_kept")
@pytest.mark.filterwarnings("ignore::Warning:mlflow", "ignore::Warning:torch")
def test_an_mlflow_model_of_the_runs_own_run(
    home: Path, mlflow_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = tiny(optim__epochs=1, evals=[])
    run = finished(home, spec)
    run_id = sent_run_id(run)
    assert run_id is not None
    told = exported(capsys, run_id, "--to", "mlflow")
    (uri,) = told["files"]
    loaded = mlflow.pyfunc.load_model(uri)
    assert loaded.metadata.signature.inputs.inputs[0].shape == (-1, 3, 16, 16)
    assert loaded.metadata.signature.outputs.inputs[0].shape == (-1, 16)
    assert loaded.metadata.metadata["job_id"] == "j_test"
    newest = checkpoint.latest(run.checkpoints)
    assert newest is not None
    encoder = target(spec, checkpoint.load(newest, identity=None)[1])
    for count in (1, 3):
        batch = images(16, count)
        with torch.no_grad():
            np.testing.assert_allclose(
                loaded.predict(batch.numpy()), encoder.features(batch), atol=1e-5
            )
    info = client(mlflow_uri).get_run(run_id)
    assert info.info.status == "FINISHED"
    assert [model.model_id for model in info.outputs.model_outputs] == [
        uri.removeprefix("models:/")
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("tracking_uri_kept")
@pytest.mark.filterwarnings("ignore::Warning:mlflow", "ignore::Warning:torch")
def test_an_mlflow_model_through_a_server(
    home: Path,
    tmp_path: Path,
    mlflow_tables: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with mlflow_server(tmp_path / "server", mlflow_tables) as server:
        server.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        run = finished(home, tiny(optim__epochs=1, evals=[]))
        (uri,) = exported(capsys, "j_test", "--to", "mlflow")["files"]
        assert mlflow.pyfunc.load_model(uri).predict(images(16).numpy()).shape == (4, 16)
        # The same store without its server keeps its files elsewhere, and says so.
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/server/mlflow.db")
        said = refusal(capsys, "j_test", "--to", "mlflow", code=Exit.FAILED)
        assert "does not take it" in said
        assert sent_run_id(run) is not None


@pytest.mark.usefixtures("tracking_uri_kept")
@pytest.mark.filterwarnings("ignore::Warning:mlflow", "ignore::Warning:torch")
def test_no_mlflow_model_stays_that_differs(
    home: Path, mlflow_uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(home, tiny(optim__epochs=1, evals=[]))
    monkeypatch.setattr(checks, "TOLERANCE", -1.0)
    said = refusal(capsys, "j_test", "--to", "mlflow", code=Exit.FAILED)
    assert "outputs differ by" in said
    monkeypatch.setattr(mlflow_model, "_logged", broken)
    said = refusal(capsys, "j_test", "--to", "mlflow", code=Exit.FAILED)
    assert said == "mlflow: ValueError: not exported\n"
    store, run_id = client(mlflow_uri), sent_run_id(run)
    assert run_id is not None
    experiment = store.get_run(run_id).info.experiment_id
    assert not store.search_logged_models([experiment])


def broken(*_: Any) -> str:
    raise ValueError("not exported")


def test_a_run_that_is_not_in_mlflow(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(home)
    assert "no run in MLflow" in refusal(capsys, "j_1", "--to", "mlflow")


def test_files_that_are_there_stay(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(home)
    readme = tmp_path / "README.md"
    readme.write_text("mine")
    words = ("j_1", "--to", "safetensors", "--out", str(tmp_path))
    assert "README.md in" in refusal(capsys, *words)
    assert readme.read_text() == "mine"
    assert not (tmp_path / "encoder.safetensors").exists()
    exported(capsys, *words, "--force")
    assert readme.read_text() != "mine"
    assert "encoder.safetensors, README.md" in refusal(capsys, *words)


def test_what_is_asked_for_must_make_sense(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(home)
    saved(home, "j_study", "stochastic-s0")
    saved(home, "j_study", "stochastic-s1")
    out = str(tmp_path / "out")
    assert "out: name a file or a folder" in refusal(capsys, "j_1", "--to", "timm")
    wrong = refusal(capsys, "j_1", "--to", "onnx", "--out", f"{out}.pth")
    assert "a file of onnx ends in .onnx; or name a folder" in wrong
    assert "'j_9' is no folder" in refusal(capsys, "j_9", "--to", "timm", "--out", out)
    many = refusal(capsys, "j_study", "--to", "timm", "--out", out)
    assert "name one of its runs, as j_study/CELL: stochastic-s0, stochastic-s1" in many
    exported(capsys, "j_study", "--cell", "stochastic-s0", "--to", "timm", "--out", out)
    told = exported(capsys, "j_study/stochastic-s1", "--to", "timm", "--out", out, "--force")
    assert told["provenance"]["cell"] == "stochastic-s1"
    alone = tmp_path / "step-00000005"
    (home / "jobs/j_1/runs/run/checkpoints/step-00000005").rename(alone)
    said = refusal(capsys, str(alone), "--to", "timm", "--out", f"{out}2", code=Exit.FAILED)
    assert "outside of its run's folder" in said
