"""Estimates over REST, by the client and on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from stoplab_api.cli.main import app
from stoplab_api.client import ApiError, Client
from stoplab_api.findings import EstimateBody, HindsightBody
from stoplab_platform.files import write_atomic, write_json
from stoplab_platform.jobs.states import State
from stoplab_platform.specs import parse_spec
from support_api import COMPARE, SPEC, Api, running_api, secret

REMOTE = {**SPEC, "data": {"train": "s3://b/{0..9}.tar", "image_size": 16}, "evals": []}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    """A lab in which nothing has run yet."""
    with running_api(tmp_path / "lab", capacity_cpus=4) as running:
        yield running


def finish(api: Api, job_id: str, speed: float) -> None:
    """The job succeeds, and leaves what a run leaves."""
    run = api.folder(job_id).run("run")
    write_atomic(run.spec, parse_spec(SPEC).to_yaml())
    write_json(run.progress, {"samples_per_s": speed})
    summary = {"steps": 19, "elapsed_s": 30.0, "facts": {}, "metrics": {}}
    write_json(run.summary, summary)
    api.moved(job_id, State.SUCCEEDED)


def asked(api: Api, spec: Any, role: str = "ana", **more: Any) -> EstimateBody:
    with api.http(role) as http:
        answer = http.post("/v1/estimates", json={"spec": spec, **more})
    assert answer.status_code == 200, answer.text
    found = EstimateBody.model_validate(answer.json())
    assert found.model_extra == {}, "all of it is documented"
    return found


class TestEstimate:
    def test_before_anything_ran(self, api: Api) -> None:
        found = asked(api, SPEC, "vera")
        assert (found.confidence, found.images, found.runs) == ("assumed", 1257, 1)
        assert found.parameters is not None
        assert found.parameters.trained == found.parameters.encoder + found.parameters.predictor
        for band in (found.cpu_hours, found.wall_hours, found.run_hours):
            assert band is not None
            assert 0 < band.low < band.value < band.high
        assert found.gpu_hours is not None
        assert found.gpu_hours.high == 0

    def test_a_study(self, api: Api) -> None:
        found = asked(api, COMPARE)
        assert (found.runs, found.concurrent) == (4, 4)
        assert found.rests_on.sentence

    def test_remote_data_is_not_counted(self, api: Api) -> None:
        assert asked(api, REMOTE).wall_hours is None
        told = asked(api, REMOTE, images=10_000)
        assert told.images == 10_000
        assert told.wall_hours is not None

    def test_it_is_checked_as_a_submit_is(self, api: Api) -> None:
        bad = {**SPEC, "seeed": 1, "optim": {"lr": -1}}
        greedy = {**SPEC, "compute": {"workers": 64}}
        with api.http() as http:
            for body in ({"spec": bad}, {"spec": greedy}, {"spec": 3}, {}, {"spec": SPEC, "x": 1}):
                submit = http.post("/v1/jobs?dry_run=true", json=body)
                told = http.post("/v1/estimates", json=body)
                assert told.status_code == submit.status_code == 422
                assert told.json()["errors"] == submit.json()["errors"]
            for images in (0, -1, 1.5, "many", 10**15):
                body = {"spec": SPEC, "images": images}
                assert http.post("/v1/estimates", json=body).status_code == 422
        with api.http(None) as http:
            assert http.post("/v1/estimates", json={"spec": SPEC}).status_code == 401

    def test_a_dry_run_says_where_to_ask(self, api: Api) -> None:
        with api.http() as http:
            told = http.post("/v1/jobs?dry_run=true", json={"spec": SPEC}).json()
        assert told["links"] == {"estimate": "/v1/estimates"}

    def test_an_evaluation_knows_its_own_projects_checkpoints(self, api: Api) -> None:
        made = api.submitted(SPEC)["id"]
        data = {"train": "digits/train", "test": "digits/test", "image_size": 16}
        spec = {"kind": "evaluate", "name": "e", "checkpoint": {"job": made}, "data": data}
        assert asked(api, spec).wall_hours is not None
        with api.http("eve") as http:
            told = http.post("/v1/estimates", json={"spec": spec})
        assert told.status_code == 422
        assert told.json()["errors"][0]["pointer"] == "/spec/checkpoint/job"


class TestMeasured:
    def test_finished_runs_of_the_project_are_asked(self, api: Api) -> None:
        before = asked(api, SPEC)
        job = api.submitted(SPEC)["id"]
        finish(api, job, 1234.0)
        found = asked(api, SPEC)
        assert (before.confidence, found.confidence) == ("assumed", "measured")
        assert found.samples_per_s is not None
        assert found.samples_per_s.value == 1234.0
        assert f"measured in {job}/run" in found.rests_on.facts
        assert asked(api, SPEC, "eve").confidence == "assumed", "not another project's"
        larger = {**SPEC, "model": {**SPEC["model"], "depth": 3}}
        assert asked(api, larger).confidence == "scaled"

    def test_beside_what_it_took(self, api: Api) -> None:
        job = api.submitted(SPEC)["id"]
        path = f"/v1/jobs/{job}/estimate"
        with api.http("vera") as http:
            early = http.get(path).json()
            assert early["measured"] is None
            assert "QUEUED" in early["reason"]
            finish(api, job, 55.0)
            answer = http.get(path)
        told = HindsightBody.model_validate(answer.json())
        assert told.model_extra == {}
        assert told.measured is not None
        assert told.error is not None
        assert told.reason is None
        assert f"measured in {job}/run" not in told.estimate.rests_on.facts, "as it was before"
        assert told.estimate.wall_hours is not None
        assert told.error.wall_hours == pytest.approx(
            (told.measured.wall_hours or 0) / told.estimate.wall_hours.value - 1
        )
        with api.http("eve") as http:
            assert http.get(path).status_code == 404


class TestClient:
    def test_estimates(self, api: Api) -> None:
        with Client(api.url, secret("ana")) as client:
            assert client.estimate(parse_spec(SPEC)).runs == 1
            assert client.estimate(REMOTE, images=5000).images == 5000
            with pytest.raises(ApiError, match="/spec/seed"):
                client.estimate({**SPEC, "seed": -1})
            job = client.submit(SPEC)
            assert client.hindsight(job.id).reason


class TestCommand:
    @pytest.fixture
    def spec(self, tmp_path: Path) -> Path:
        path = tmp_path / "spec.yaml"
        path.write_text(yaml.safe_dump(SPEC))
        return path

    def run(self, *words: object, code: int = 0) -> Result:
        result = CliRunner().invoke(app, ["estimate", *map(str, words)])
        assert result.exit_code == code, result.output
        return result

    def test_without_a_lab(self, spec: Path, home: Path) -> None:
        told = json.loads(self.run(spec, "--set", "optim.epochs=3", "--json").stdout)
        assert EstimateBody.model_validate(told).model_extra == {}
        assert told["confidence"] == "assumed"
        text = self.run(spec).stdout
        for word in (
            "parameters trained",
            "FLOPs an image",
            "on the clock",
            "GPU-hours",
            "assumed",
        ):
            assert word in text
        assert list(home.iterdir()) == [home / "cache"], "nothing is made"

    def test_from_runs_of_this_machine(self, spec: Path, home: Path) -> None:
        run = home / "jobs" / "j_1" / "runs" / "run"
        write_atomic(run / "spec.yaml", parse_spec(SPEC).to_yaml())
        write_json(run / "progress.json", {"samples_per_s": 99.0})
        summary = {"steps": 19, "elapsed_s": 30.0, "facts": {}, "metrics": {}}
        write_json(run / "summary.json", summary)
        told = json.loads(self.run(spec, "--json").stdout)
        assert (told["confidence"], told["samples_per_s"]["value"]) == ("measured", 99.0)

    def test_with_a_lab(self, api: Api, spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STOPLAB_API_URL", api.url)
        monkeypatch.setenv("STOPLAB_TOKEN", secret("ana"))
        finish(api, api.submitted(SPEC)["id"], 1234.0)
        assert json.loads(self.run(spec, "--json").stdout)["confidence"] == "measured"
        refused = json.loads(self.run(spec, "--set", "seed=-1", "--json", code=2).stdout)
        assert refused["errors"][0]["path"] == "seed"

    def test_a_lab_that_is_away(self, spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("stoplab_api.exchange.PAUSES_S", ())
        monkeypatch.setenv("STOPLAB_API_URL", "http://127.0.0.1:9")
        result = self.run(spec, "--json")
        assert json.loads(result.stdout)["confidence"] == "assumed"
        assert "does not answer" in result.stderr

    def test_images_that_nobody_knows(self, tmp_path: Path) -> None:
        path = tmp_path / "remote.yaml"
        path.write_text(yaml.safe_dump(REMOTE))
        assert "give `images`" in self.run(path).stdout
        given = json.loads(self.run(path, "--images", 5000, "--json").stdout)
        assert given["wall_hours"] is not None
