"""`stoplab jobs trials` and the reports: over REST, and from a folder on this machine."""

from __future__ import annotations

import csv
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from rich.console import Console
from typer.testing import CliRunner, Result

from stoplab_api.answers import TrialListBody
from stoplab_api.cli import trials
from stoplab_api.cli.main import app
from stoplab_api.client import Client
from stoplab_platform.files import write_json
from stoplab_platform.jobs.states import State
from stoplab_platform.ledger import Cell, CellState, Ledger
from support_api import COMPARE, SPEC, Api, running_api, secret
from support_reports import compared, swept

NOISE = "positions.noise_std"


def stoplab(*words: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def api(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with running_api(home) as running:
        monkeypatch.setenv("STOPLAB_API_URL", running.url)
        monkeypatch.setenv("STOPLAB_TOKEN", secret("root"))
        yield running


@pytest.fixture
def sweep(api: Api) -> dict[str, Any]:
    """A sweep with a run that ended, one that runs, and a pruned one."""
    base = {**SPEC, "evals": [{"kind": "knn"}]}
    space = {NOISE: {"grid": [0.1, 0.2, 0.3]}}
    made = api.submitted({"kind": "sweep", "name": "grid", "base": base, "space": space})
    states = (CellState.SUCCEEDED, CellState.RUNNING, CellState.PRUNED)
    cells = [
        Cell(id=f"p{i}-s0", index=i, seed=0, state=state, point={NOISE: (i + 1) / 10},
             metrics={} if state is CellState.RUNNING else {"val/knn_top1": 0.5 + i / 10})
        for i, state in enumerate(states)
    ]  # fmt: skip
    folder = api.folder(made["id"])
    Ledger(folder).plan(cells)
    tied = [{"point": {NOISE: 0.2}, "mean": 0.4, "ci95": None, "n": 1}]
    best = {"point": {NOISE: 0.1}, "mean": 0.5, "ci95": [0.4, 0.6], "n": 2}
    best |= {"tied": tied, "n_points": 3, "n_unjudged": 1}
    progress = {"step": 2, "steps": 3, "epoch": 0, "eta_s": 90, "samples_per_s": None}
    write_json(folder.progress, {**progress, "best": best})
    return made


class TestTrials:
    def test_the_table_and_the_best(self, sweep: dict[str, Any]) -> None:
        told = stoplab("jobs", "trials", sweep["id"], "--sort", f"-{NOISE}").stdout
        rows = [line.split() for line in told.splitlines()]
        assert rows[0][:4] == ["run", NOISE, "seed", "state"]
        assert rows[1][:5] == ["p2-s0", "0.3", "0", "PRUNED", "0.7000"]
        assert "1 PRUNED, 1 RUNNING, 1 SUCCEEDED" in told
        assert "best so far: 0.5000 at positions.noise_std=0.1 (95 % interval 0.4000" in told
        said = "1 of the 2 others cannot be told apart from it, 1 could not be judged"
        assert said in " ".join(told.split())

    def test_what_is_wanted(self, sweep: dict[str, Any]) -> None:
        words = ("jobs", "trials", sweep["id"], "--json")
        some = json.loads(stoplab(*words, "--state", "pruned", "--state", "running").stdout)
        assert [item["id"] for item in some["items"]] == ["p1-s0", "p2-s0"]
        one = json.loads(stoplab(*words, "--point", f"{NOISE}:0.2", "--seed", 0).stdout)
        assert [item["id"] for item in one["items"]] == ["p1-s0"]
        assert json.loads(stoplab(*words, "--arm", "other").stdout)["items"] == []
        bounded = json.loads(stoplab(*words, "--min", "val/knn_top1:0.6").stdout)
        assert [item["id"] for item in bounded["items"]] == ["p2-s0"]
        assert json.loads(stoplab(*words, "--max", "val/knn_top1:0.4").stdout)["items"] == []

    def test_as_csv(self, sweep: dict[str, Any]) -> None:
        told = stoplab("jobs", "trials", sweep["id"], "--csv", "--state", "SUCCEEDED").stdout
        (row,) = csv.DictReader(io.StringIO(told))
        assert (row["cell"], row["val/knn_top1"]) == ("p0-s0", "0.5")
        stoplab("jobs", "trials", sweep["id"], "--csv", "--json", code=2)

    def test_as_a_parquet_file(self, sweep: dict[str, Any], tmp_path: Path) -> None:
        file = tmp_path / "trials.parquet"
        stoplab("jobs", "trials", sweep["id"], "--parquet", file, "--sort", "-index")
        assert parquet.read_table(file)["cell"].to_pylist() == ["p2-s0", "p1-s0", "p0-s0"]
        stoplab("jobs", "trials", sweep["id"], "--parquet", file, "--csv", code=2)

    def test_watched_to_the_end(self, api: Api, sweep: dict[str, Any]) -> None:
        found: list[Result] = []
        words = ["jobs", "trials", sweep["id"], "--watch"]
        thread = threading.Thread(target=lambda: found.append(CliRunner().invoke(app, words)))
        thread.start()
        api.moved(sweep["id"], State.FAILED)
        thread.join(30)
        assert found[0].exit_code == 1
        assert "p2-s0" in found[0].stdout

    def test_the_live_view_shows_the_best_and_what_fits(self, api: Api, sweep: Any) -> None:
        with api.http() as http:
            told = http.get(f"/v1/jobs/{sweep['id']}/trials").json()
        with Client(api.url, secret("root")) as client:
            job = client.get(sweep["id"])
        console = Console(file=io.StringIO(), width=120, height=10, force_terminal=False)
        console.print(trials._view(job, TrialListBody.model_validate(told), console))
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert "grid" in text
        assert "2/3 runs" in text
        assert "best so far: 0.5000" in text
        assert "p1-s0" in text, "what runs goes first"
        assert "and 1 more" in text


class TestReport:
    def test_over_rest(self, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        made = api.submitted(COMPARE)
        folder = api.folder(made["id"])
        write_json(folder.comparison, {"verdict": "better"})
        folder.comparison_page.write_text("# page\n")
        folder.comparison_png.write_bytes(b"png")
        words = ("compare", "report", made["id"])
        assert stoplab(*words).stdout == "# page\n"
        assert json.loads(stoplab(*words, "--format", "json").stdout)["verdict"] == "better"
        assert stoplab(*words, "--format", "png").stdout.strip() == f"{made['id']}.png"
        assert (tmp_path / f"{made['id']}.png").read_bytes() == b"png"
        stoplab("jobs", "report", made["id"], "--out", "a.md")
        assert (tmp_path / "a.md").read_text() == "# page\n"
        stoplab(*words, "--format", "html", code=1)

    def test_a_sweep_over_rest(self, api: Api, sweep: dict[str, Any]) -> None:
        write_json(api.folder(sweep["id"]).surface, {"reason": None})
        words = ("jobs", "report", sweep["id"], "--format")
        assert json.loads(stoplab(*words, "json").stdout) == {"reason": None}
        stoplab(*words, "tex", code=2)

    def test_from_a_folder(self, home: Path, tmp_path: Path, capfd: Any) -> None:
        compared(home / "jobs" / "j_mine")
        capfd.readouterr()
        stoplab("compare", "report", "j_mine", "--format", "tex")
        assert r"\toprule" in capfd.readouterr().out
        _, grid = swept(tmp_path / "grid")
        out = tmp_path / "surface.png"
        stoplab("jobs", "report", grid.root, "--format", "png", "--out", out)
        assert out.read_bytes()[1:4] == b"PNG"
        stoplab("compare", "report", tmp_path, code=2)
