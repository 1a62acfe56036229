"""`stoplab export`: its words, and the process that does it."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from typer.testing import CliRunner

from stoplab_api.cli.main import app
from support_lab import Stoplab
from support_weights import saved


def test_a_run_leaves_as_a_timm_encoder(home: Path, tmp_path: Path) -> None:
    saved(home, "j_1")
    words = ("export", "j_1", "--to", "timm", "--out", "weights")
    told = Stoplab(home, tmp_path).json(*words)
    assert told["provenance"]["job_id"] == "j_1"
    assert told["files"] == [str(tmp_path / "weights" / n) for n in ("encoder.json", FILE)]
    features = eval(told["load"], {"timm": timm})(torch.zeros(2, 3, 16, 16))
    assert features.shape == (2, 16)


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
