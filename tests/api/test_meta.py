from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import jsonschema
import pytest

from stoplab_api.answers import ClusterBody
from stoplab_platform.jobs.models import Principal, Role
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.service import Jobs
from stoplab_platform.settings import Settings
from stoplab_platform.specs import parse_spec
from support_api import COMPARE, SPEC, Api, eventually, running_api, secret


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(
        tmp_path_factory.mktemp("home"), capacity_cpus=4, capacity_gpus=1, quotas={"*": {"gpus": 1}}
    ) as running:
        yield running


class TestSchema:
    @pytest.mark.parametrize("kind", ["pretrain", "sweep", "compare", "evaluate"])
    def test_of_each_kind(self, api: Api, kind: str) -> None:
        with api.http() as http:
            schema = http.get(f"/v1/schema/{kind}").json()
        assert schema["properties"]["kind"]["const"] == kind
        assert schema["properties"]["name"]["description"]
        jsonschema.Draft202012Validator.check_schema(schema)

    def test_it_takes_what_we_take(self, api: Api) -> None:
        with api.http() as http:
            run = http.get("/v1/schema/pretrain").json()
        validator = jsonschema.Draft202012Validator(run)
        assert validator.is_valid(SPEC)
        assert not validator.is_valid({**SPEC, "seed": -1})

    def test_unknown_kind(self, api: Api) -> None:
        with api.http() as http:
            assert http.get("/v1/schema/bake").status_code == 400


class TestCluster:
    def test_reservations(self, api: Api) -> None:
        api.submitted()
        running = api.submitted({**COMPARE, "limits": {"max_concurrent": 2}})
        api.moved(running["id"], State.RUNNING)
        with api.http() as http:
            told = http.get("/v1/cluster").json()
        ClusterBody.model_validate(told)
        assert told["capacity"] == {"cpus": 4.0, "gpus": 1.0}
        assert told["reserved"] == {"cpus": 2.0, "gpus": 0.0}
        assert told["jobs"] == {"QUEUED": 1, "RUNNING": 1}
        assert told["runner"] == {"kind": "LocalRunner", "alive": True}
        assert told["project"]["held"] == {"cpus": 2.0, "gpus": 0.0, "jobs": 1}
        assert told["project"]["quota"] == {"cpus": None, "gpus": 1.0, "jobs": None}


class TestProcess:
    def test_it_ends_on_sigterm_with_a_stream_open(self, tmp_path: Path) -> None:
        job_id = _paused_job(Settings(home=tmp_path))
        log = tmp_path / "api.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "stoplab_api.app", "--port", "0"],
                env={**os.environ, "STOPLAB_HOME": str(tmp_path)},
                stderr=output,
            )
        try:
            line = r"running on (http://127\.0\.0\.1:\d+)"
            eventually(lambda: re.search(line, log.read_text()) or process.poll() is not None, 60)
            found = re.search(line, log.read_text())
            assert found, log.read_text()
            headers = {"Authorization": f"Bearer {secret('ana')}"}
            with (
                httpx.Client(base_url=found[1], headers=headers, trust_env=False) as http,
                http.stream("GET", f"/v1/jobs/{job_id}/logs?follow=true") as answer,
            ):
                blocks = answer.iter_raw()
                next(blocks)
                process.send_signal(signal.SIGTERM)
                list(blocks)
            assert process.wait(20) == -signal.SIGTERM
        finally:
            process.kill()
            process.wait()
        text = log.read_text()
        assert "Application shutdown complete" in text
        assert "Cancel" not in text, "nothing had to be cut off"
        assert f"method=GET path=/v1/jobs/{job_id}/logs status=200" in text


def _paused_job(settings: Settings) -> str:
    """A job that waits for nobody, and ana's token, in a home without a server."""
    store = JobStore(settings.database)
    store.migrate()
    store.create_token(
        "ana", owner="ana", project="default", role=Role.SUBMITTER, secret=secret("ana")
    )
    ana = Principal("ana", "default", Role.SUBMITTER)
    jobs = Jobs(store, settings)
    job = jobs.submit(ana, parse_spec(SPEC)).job
    jobs.pause(ana, job.id)
    store.close()
    return job.id
