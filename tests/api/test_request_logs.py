from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoplab_platform.logs import JsonLines, KeyValues
from support_api import Api, eventually, running_api, secret
from support_logs import logging_to


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_api(tmp_path) as running:
        yield running


def test_a_line_a_request(api: Api) -> None:
    with logging_to(KeyValues, logger_name="stoplab.api") as said, api.http() as http:
        http.get("/v1/jobs/j_%0Aodd?x=secret", headers={"X-Request-ID": "mine-1"})
        eventually(said.getvalue)
    (line,) = said.getvalue().splitlines()
    assert " logger=stoplab.api message=answered method=GET path=/v1/jobs/j_%0Aodd " in line
    assert " status=400 ms=" in line
    assert line.endswith(" request_id=mine-1")
    assert "secret" not in line, "what a query holds is its client's"


def test_a_mistake_of_ours_has_the_id_that_the_client_was_told(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError(f"sent Authorization: Bearer {secret('ana')}")

    monkeypatch.setattr(api.store, "get", broken)
    with logging_to(JsonLines, logger_name="uvicorn.error") as said, api.http() as http:
        answer = http.get("/v1/jobs/j_1")
        eventually(said.getvalue)
    assert answer.status_code == 500
    line = json.loads(said.getvalue().splitlines()[0])
    assert line["request_id"] == answer.json()["request_id"]
    assert "RuntimeError: sent Authorization: [redacted]" in line["exception"]
    assert secret("ana") not in said.getvalue()
