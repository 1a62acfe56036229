"""`stoplab compare`: a spec, or one of its commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from stoplab_api.cli.main import app
from support_lab import Stoplab

CSV = "fold,who,acc\n" + "".join(
    f"{i},off,{0.5 + i / 100}\n{i},on,{0.55 + i / 99}\n" for i in (1, 2, 3)
)


@pytest.mark.parametrize("words", [["none.yaml"], ["run", "none.yaml"], ["--set", "a=1", "x.yaml"]])
def test_what_is_no_command_is_a_spec(words: list[str]) -> None:
    told = CliRunner().invoke(app, ["compare", *words])
    assert told.exit_code == 2
    assert f"{words[-1]} cannot be read" in told.stderr


def test_its_commands_are_listed() -> None:
    told = CliRunner().invoke(app, ["compare", "--help"])
    assert told.exit_code == 0
    assert {"run", "table"} <= set(told.stdout.split())
    assert CliRunner().invoke(app, ["compare"]).exit_code == 2


def test_a_table_of_runs_made_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(CSV)
    stoplab = Stoplab(tmp_path / "home", tmp_path)
    words = ("compare", "table", "runs.csv", "--block", "fold", "--arm", "who", "--metric", "acc")
    judged = stoplab.json(*words, "--reference", "off", "--min-effect", 0.001)
    assert (judged["verdict"], judged["n_blocks"], judged["other"]) == ("better", 3, "on")
    assert judged["min_effect"] == 0.001
    assert "on is better than off" in stoplab.run(*words, "--reference", "off")
    (error,) = stoplab.json(*words, code=2)["errors"]
    assert error["path"] == "reference"


def test_names_may_begin_with_a_dash(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text(CSV.replace("acc", "-loss").replace("off", "-off"))
    stoplab = Stoplab(tmp_path / "home", tmp_path)
    words = ("compare", "table", "runs.csv", "--block", "fold", "--arm", "who")
    judged = stoplab.json(*words, "--metric=-loss", "--reference=-off")
    assert (judged["metric"], judged["reference"]) == ("-loss", "-off")
