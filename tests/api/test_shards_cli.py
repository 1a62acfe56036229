"""`stoplab shards`: what the trainers are asked for, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from stoplab_api.cli import run
from stoplab_api.cli.main import app

runner = CliRunner()


@pytest.mark.parametrize(
    ("words", "module", "expected"),
    [
        (
            ["build", "src", "--out", "o", "--shuffle", "none", "--label", "y", "--json"],
            "data.build",
            ["--out=o", "--name=train", "--shard-size=1000", "--shuffle=none", "--label=y",
             "--json", "--", "src"],
        ),
        (["index", "o", "--threads", "2"], "data.build", ["--index=o", "--threads=2"]),
        (["verify", "a", "b", "--images"], "data.verify", ["--images", "--", "a", "b"]),
        (
            ["stats", "s3://b/*.tar", "--storage", "secret://x"],
            "data.stats",
            ["--storage=secret://x", "--", "s3://b/*.tar"],
        ),
    ],
)  # fmt: skip
def test_words(
    words: list[str], module: str, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def note(command: list[str], **_: Any) -> SimpleNamespace:
        asked.append(command)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(run.subprocess, "run", note)
    assert runner.invoke(app, ["shards", *words]).exit_code == 1, "the trainers' own"
    assert [command[3:] for command in asked] == [[f"stoplab_trainers.{module}", *expected]]


def test_from_images_to_counts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / name / "one.png")
    words = ["shards", "build", str(tmp_path / "images"), "--out", str(tmp_path / "out"), "--json"]
    assert runner.invoke(app, words).exit_code == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["samples"], told["classes"]) == (2, ["cat", "dog"])
    missing = ["shards", "stats", str(tmp_path / "none"), "--json"]
    assert runner.invoke(app, missing).exit_code == 2
    assert "do not exist" in json.loads(capfd.readouterr().out)["error"]
