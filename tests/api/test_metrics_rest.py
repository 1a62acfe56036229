"""Metrics over REST, by the client and on the command line; the store of MLflow is a real one."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from stoplab_api.cli.main import app
from stoplab_api.cli.metrics import sparkline
from stoplab_api.client import ApiError, Client
from stoplab_api.findings import MetricListBody, SeriesListBody
from stoplab_platform.files import read_json, write_json
from stoplab_platform.ledger import Cell, Ledger
from stoplab_platform.paths import RunFolder
from stoplab_platform.tracking import RunIdentity, SpoolTracker, create_parent, drain
from support_api import COMPARE, Api, running_api, secret

LOSS, LR = "train/loss", "train/lr"
STEPS = 1200


@pytest.fixture(scope="module")
def store_uri(tmp_path_factory: pytest.TempPathFactory, mlflow_tables: Path) -> str:
    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copy(mlflow_tables, folder / "mlflow.db")
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, store_uri: str) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("home"), MLFLOW_TRACKING_URI=store_uri) as running:
        yield running


@pytest.fixture(scope="module")
def job(api: Api, store_uri: str) -> str:
    """A run whose loss has a peak and a hole, sent to MLflow but for its last ten points."""
    made: str = api.submitted()["id"]
    folder = api.folder(made).run("run")
    logged(folder, identity(made), range(STEPS - 10))
    assert drain(folder, store_uri, timeout_s=60)
    logged(folder, identity(made), range(STEPS - 10, STEPS))
    return made


@pytest.fixture(scope="module")
def study(api: Api, store_uri: str) -> str:
    """A comparison with one cell that has logged, and a result in the parent."""
    made: str = api.submitted(COMPARE)["id"]
    folder = api.folder(made)
    Ledger(folder).plan([Cell(id=f"a-s{n}", index=n, seed=n) for n in range(2)])
    logged(folder.run("a-s0"), identity(made, "a-s0"), range(5))
    parent = create_parent(store_uri, identity(made), {})
    write_json(folder.tracked, parent._asdict())
    tracker = SpoolTracker(folder.run("parent"), None)
    tracker.start(identity(made, "parent"), {})
    tracker.metrics(0, {"compare/delta": 0.01})
    tracker.close()
    return made


def identity(job_id: str, cell: str | None = None) -> RunIdentity:
    return RunIdentity(job_id=job_id, kind="pretrain", name="x", experiment="t", cell=cell)


def logged(folder: RunFolder, who: RunIdentity, steps: range) -> None:
    tracker = SpoolTracker(folder, None)
    tracker.start(who, {})
    for step in steps:
        loss = {500: math.nan, 700: 99.0}.get(step, 1 / (step + 1))
        tracker.metrics(step, {LOSS: loss, LR: 0.1})
    tracker.close()


def asked(api: Api, job: str, **params: Any) -> Any:
    with api.http("vera") as http:
        answer = http.get(f"/v1/jobs/{job}/metrics", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


class TestNames:
    def test_last_values(self, api: Api, job: str) -> None:
        found = MetricListBody.model_validate(asked(api, job))
        assert found.model_extra == {}
        assert (found.run, found.source, len(found.run_id or "")) == ("run", "mlflow", 32)
        last = {one.name: one.value for one in found.items}
        assert last == {LOSS: 1 / STEPS, LR: 0.1}

    def test_before_the_run_has_said_anything(self, api: Api) -> None:
        told = asked(api, api.submitted()["id"])
        assert told == {"run": "run", "run_id": None, "source": "spool", "items": []}


class TestSeries:
    def test_all_points_where_there_is_room(self, api: Api, job: str) -> None:
        found = SeriesListBody.model_validate(asked(api, job, name=LOSS, points=5000))
        (series,) = found.series
        assert (series.name, series.n_total, series.downsampled) == (LOSS, STEPS, False)
        assert [point.step for point in series.points] == list(range(STEPS))
        assert series.points[500].value is None
        assert series.points[0].at.tzinfo is not None

    def test_fewer_points_keep_what_matters(self, api: Api, job: str) -> None:
        for params in ({}, {"points": 20}):
            (series,) = asked(api, job, name=LOSS, **params)["series"]
            assert series["downsampled"] is True
            assert series["n_total"] == STEPS
            assert len(series["points"]) <= params.get("points", 500)
            values = [point["value"] for point in series["points"]]
            assert None in values
            assert 99.0 in values
            steps = [point["step"] for point in series["points"]]
            assert (steps[0], steps[-1]) == (0, STEPS - 1)

    def test_several_and_unknown_ones(self, api: Api, job: str) -> None:
        found = asked(api, job, name=[LR, LOSS, LR, "none"])["series"]
        assert [one["name"] for one in found] == [LR, LOSS, "none"]
        assert found[2] == {"name": "none", "n_total": 0, "downsampled": False, "points": []}

    @pytest.mark.parametrize(
        "query",
        ["points=3", "points=5001", "points=x", "name=", "run=../x", "run=a/b", "names=a"],
    )
    def test_what_it_does_not_take(self, api: Api, query: str) -> None:
        with api.http() as http:
            answer = http.get(f"/v1/jobs/{api.submitted()['id']}/metrics?{query}")
        assert answer.status_code == 400

    def test_other_projects_jobs_are_none(self, api: Api, job: str) -> None:
        with api.http("eve") as http:
            assert http.get(f"/v1/jobs/{job}/metrics").status_code == 404


class TestStudy:
    def test_its_own_run_and_its_cells(self, api: Api, study: str) -> None:
        whole = asked(api, study)
        assert whole["run"] == "parent"
        assert whole["run_id"] == read_json(api.folder(study).tracked)["run_id"]
        assert whole["items"] == [{"name": "compare/delta", "value": 0.01}]
        cell = asked(api, study, run="a-s0", name=LOSS)
        assert (cell["run"], cell["run_id"], cell["source"]) == ("a-s0", None, "spool")
        assert cell["series"][0]["n_total"] == 5
        assert asked(api, study, run="a-s1")["items"] == []
        assert asked(api, study, run="parent") == whole

    def test_a_run_that_is_none_of_it(self, api: Api, study: str, job: str) -> None:
        with api.http() as http:
            for path in (f"{study}/metrics?run=a-s9", f"{job}/metrics?run=a-s0"):
                answer = http.get(f"/v1/jobs/{path}")
                assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


class TestMlflowAway:
    @pytest.fixture
    def away(self, home: Path) -> Iterator[Api]:
        """A server whose MLflow does not answer."""
        with running_api(home, MLFLOW_TRACKING_URI="http://127.0.0.1:9") as running:
            yield running

    @pytest.fixture
    def sent(self, away: Api) -> str:
        """A run that MLflow has."""
        made: str = away.submitted()["id"]
        folder = away.folder(made).run("run")
        logged(folder, identity(made), range(5))
        sent = {"offset": folder.spool.stat().st_size, "run_id": "0" * 32}
        write_json(folder.spool_sent, sent)
        return made

    def test_the_spool_answers(self, away: Api, sent: str) -> None:
        found = asked(away, sent, name=LOSS)
        assert (found["source"], found["series"][0]["n_total"]) == ("spool", 5)
        assert asked(away, sent)["source"] == "spool"

    def test_without_a_spool_it_is_503(self, away: Api, sent: str) -> None:
        away.folder(sent).run("run").spool.unlink()
        with away.http() as http:
            for params in ({}, {"name": LOSS}):
                answer = http.get(f"/v1/jobs/{sent}/metrics", params=params)
                assert (answer.status_code, answer.json()["code"]) == (503, "tracker-unavailable")
                assert int(answer.headers["Retry-After"]) > 0


class TestClientAndCommand:
    def run(self, *words: object, code: int = 0) -> Result:
        result = CliRunner().invoke(app, ["jobs", "metrics", *map(str, words)])
        assert result.exit_code == code, result.output
        return result

    @pytest.fixture(autouse=True)
    def here(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STOPLAB_API_URL", api.url)
        monkeypatch.setenv("STOPLAB_TOKEN", secret("ana"))

    def test_client(self, api: Api, job: str) -> None:
        with Client(api.url, secret("ana")) as client:
            assert [one.name for one in client.metrics(job).items] == [LOSS, LR]
            (series,) = client.series(job, [LOSS], points=10).series
            assert len(series.points) <= 10
            with pytest.raises(ApiError, match="is one run"):
                client.metrics(job, run="other")

    def test_last_values(self, job: str) -> None:
        told = json.loads(self.run(job, "--json").stdout)
        assert told == {"id": job, "metrics": {LOSS: 1 / STEPS, LR: 0.1}}
        assert "train/lr" in self.run(job).stdout

    def test_series(self, job: str) -> None:
        text = self.run(job, "--name", LOSS, "--name", LR).stdout
        (row,) = [line.split() for line in text.splitlines() if line.startswith(LOSS)]
        assert row[1:5] == ["0.0008333", "0.0008333", "99", str(STEPS)]
        assert set(row[5]) <= set("▁▂▃▄▅▆▇█")
        told = json.loads(self.run(job, "--name", LOSS, "--points", 50, "--json").stdout)
        assert SeriesListBody.model_validate(told).series[0].downsampled

    def test_a_run_of_a_study(self, api: Api) -> None:
        made = api.submitted(COMPARE)["id"]
        Ledger(api.folder(made)).plan([Cell(id="a-s0", index=0, seed=0)])
        logged(api.folder(made).run("a-s0"), identity(made, "a-s0"), range(5))
        told = json.loads(self.run(made, "--run", "a-s0", "--json").stdout)
        assert told["metrics"] == {LOSS: 0.2, LR: 0.1}
        self.run(made, "--run", "none", code=1)


def test_a_line_of_blocks() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0] * 3) == "▁▁▁"
    assert sparkline([]) == ""
    assert sparkline(list(range(1000)), 4) == "▁▃▆█"
