"""`stoplab export`: in a process of its own, on a run that was trained."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
import yaml
from typer.testing import CliRunner

from stoplab_api.cli.main import app
from support_lab import Stoplab
from support_runs import TINY


def test_a_trained_run_leaves_as_a_timm_encoder(home: Path, tmp_path: Path) -> None:
    stoplab = Stoplab(home, tmp_path)
    spec = {**TINY, "evals": [], "optim": {**TINY["optim"], "epochs": 1}}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    job = stoplab.json("train", "spec.yaml")["job_id"]
    words = ("export", job, "--to", "timm", "--out", "weights")
    told = stoplab.json(*words)
    assert told["provenance"]["job_id"] == job
    assert told["files"] == [str(tmp_path / "weights" / n) for n in ("encoder.json", FILE)]
    features = eval(told["load"], {"timm": timm})(torch.zeros(2, 3, 16, 16))
    assert features.shape == (2, 16)
    assert "would be replaced; --force does it" in stoplab.json(*words, code=2)["error"]
    assert told["load"] in stoplab.run(*words, "--force")
    (model,) = stoplab.json("export", job, "--to", "mlflow")["files"]
    assert model.startswith("models:/")


FILE = "encoder.safetensors"


def test_a_command_line_that_makes_no_sense() -> None:
    for words, said in (
        (["j_1", "--to", "timm"], "out: give --out PATH"),
        (["j_1", "--to", "mlflow", "--out", "x"], "a model of MLflow is kept there"),
        (["j_1", "--to", "gguf", "--out", "x"], "'gguf' is not one of"),
    ):
        told = CliRunner().invoke(app, ["export", *words])
        assert told.exit_code == 2
        assert said in told.stderr
