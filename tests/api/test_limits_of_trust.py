"""Every route of the page, tried by somebody whom it is not for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stoplab_platform.jobs.models import Role, Scope
from support_api import Api, running_api, secret

OF_A_JOB = "{job_id}"
FILLED = {"kind": "pretrain", "code": "not-found", "token_id": "t_x", "path": "x"}
WRITING = ("post", "put", "patch", "delete")
READS_BY_POST = ("/v1/estimates",)
"""Nothing is stored by these."""


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("home")) as running:
        yield running


def routes(api: Api) -> list[tuple[str, str, dict[str, Any]]]:
    with api.http() as http:
        page = http.get("/openapi.json").json()
    return [
        (method, path, operation)
        for path, methods in page["paths"].items()
        for method, operation in methods.items()
        if "security" in operation and path.startswith("/v1")
    ]


def request(
    method: str, path: str, operation: dict[str, Any], job_id: str
) -> tuple[str, str, dict[str, Any]]:
    """The operation as a request that fits its page."""
    names = {**FILLED, "job_id": job_id}
    url = re.sub(r"\{(\w+)(?::\w+)?\}", lambda found: names[found[1]], path)
    needed = [p for p in operation.get("parameters", []) if p["in"] == "query" and p["required"]]
    options: dict[str, Any] = {
        "headers": {"If-Match": "*"},
        "params": {p["name"]: p["schema"].get("enum", ["x"])[0] for p in needed},
    }
    if "requestBody" in operation:
        examples = operation["requestBody"]["content"]["application/json"]["examples"]
        options["json"] = next(iter(examples.values()))["value"]
    return method.upper(), url, options


def test_another_projects_job_does_not_exist(api: Api) -> None:
    job_id = api.submitted()["id"]
    tried = [route for route in routes(api) if OF_A_JOB in route[1]]
    assert len(tried) >= 12
    with api.http("eve") as http:
        for method, path, operation in tried:
            verb, url, options = request(method, path, operation, job_id)
            answer = http.request(verb, url, **options)
            assert answer.status_code == 404, (verb, path, answer.text)
            assert answer.json()["code"] == "not-found"
        nothing = http.get("/v1/jobs/j_none").json()
        hidden = http.get(f"/v1/jobs/{job_id}").json()
    same = ("type", "title", "status", "code", "errors")
    assert {name: nothing[name] for name in same} == {name: hidden[name] for name in same}
    assert hidden["detail"].replace(job_id, "j_none") == nothing["detail"]


def test_a_viewer_changes_nothing(api: Api) -> None:
    job_id = api.submitted()["id"]
    tried = [r for r in routes(api) if r[0] in WRITING and r[1] not in READS_BY_POST]
    assert len(tried) >= 9
    with api.http("vera") as http:
        for method, path, operation in tried:
            verb, url, options = request(method, path, operation, job_id)
            answer = http.request(verb, url, **options)
            assert answer.status_code == 403, (verb, path, answer.text)


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        (Scope.JOBS_READ, lambda method, path: method == "get" and "/tokens" not in path),
        (Scope.JOBS_WRITE, lambda method, path: method != "get" and "/tokens" not in path),
        (Scope.TOKENS_ADMIN, lambda method, path: "/tokens" in path),
    ],
)
def test_a_scope_opens_its_own_routes_alone(api: Api, scope: Scope, allowed: Any) -> None:
    _, word = api.store.create_token(
        "narrow", owner="root", project="default", role=Role.ADMIN, scopes={scope}
    )
    open_to_all = ("/v1/me", "/v1/cluster", "/v1/schema/{kind}")
    job_id = api.submitted()["id"]
    with api.http(None) as http:
        http.headers["Authorization"] = f"Bearer {word}"
        for method, path, operation in routes(api):
            verb, url, options = request(method, path, operation, job_id)
            if path == "/v1/tokens" and "json" in options:
                options["json"] = {**options["json"], "scopes": [scope]}
            refused = http.request(verb, url, **options).status_code == 403
            if path not in (*open_to_all, *READS_BY_POST):
                assert refused is not allowed(method, path), (verb, path)


def test_a_token_gives_no_more_than_it_has(api: Api) -> None:
    _, word = api.store.create_token(
        "narrow", owner="root", project="default", role=Role.ADMIN, scopes={Scope.TOKENS_ADMIN}
    )
    with api.http(None) as http:
        http.headers["Authorization"] = f"Bearer {word}"
        body = {"name": "wide", "owner": "root", "role": "admin"}
        for scopes in (None, ["jobs:write"], ["tokens:admin", "jobs:write"]):
            answer = http.post("/v1/tokens", json={**body, "scopes": scopes})
            assert answer.status_code == 403, scopes
        made = http.post("/v1/tokens", json={**body, "scopes": ["tokens:admin"]})
        assert made.status_code == 201
        tokens = {token["name"]: token["id"] for token in http.get("/v1/tokens").json()["items"]}
        for name, status in (("root", 403), ("narrow", 200)):
            assert http.post(f"/v1/tokens/{tokens[name]}/rotate").status_code == status, name


def test_a_rotated_token(api: Api) -> None:
    with api.http("root") as http:
        made = http.post("/v1/tokens", json={"name": "ci", "owner": "kim"}).json()
        fresh = http.post(f"/v1/tokens/{made['id']}/rotate")
        assert fresh.status_code == 200
        assert fresh.json()["id"] == made["id"]
        listed = http.get("/v1/tokens").text
    with api.http(None) as http:
        for word, status in ((made["secret"], 401), (fresh.json()["secret"], 200)):
            assert word.startswith("stl_")
            assert word not in listed
            headers = {"Authorization": f"Bearer {word}"}
            assert http.get("/v1/me", headers=headers).status_code == status


def test_no_secret_of_a_token_is_at_rest(api: Api) -> None:
    home: Path = api.lab.settings.home
    for path in home.rglob("*"):
        if path.is_file():
            assert secret("ana").encode() not in path.read_bytes(), path


class TestEvents:
    def test_who_did_what_in_the_project(self, api: Api) -> None:
        job_id = api.submitted()["id"]
        with api.http("root") as http:
            start = http.get("/v1/events", params={"limit": 1000}).json()["items"][-1]["seq"]
            http.patch(f"/v1/jobs/{job_id}", json={"priority": 3}, headers={"If-Match": "*"})
            http.post(f"/v1/jobs/{job_id}/cancel")
            http.delete(f"/v1/jobs/{job_id}")
            token = http.post("/v1/tokens", json={"name": "ci", "owner": "kim"}).json()["id"]
            http.post(f"/v1/tokens/{token}/rotate")
            http.delete(f"/v1/tokens/{token}")
            told = http.get("/v1/events", params={"after": start}).json()
        items = told["items"]
        assert [item["verb"] for item in items] == [
            "edit", "cancel", "delete", "token.create", "token.rotate", "token.revoke",
        ]  # fmt: skip
        assert {item["actor"] for item in items} == {"root"}
        assert [item["job_id"] for item in items] == [job_id] * 3 + [None] * 3
        assert all(token in item["message"] for item in items[3:])
        assert told["next_after"] is None

    def test_pages_and_filters(self, api: Api) -> None:
        for _ in range(3):
            api.submitted()
        with api.http("root") as http:
            seen, after = [], 0
            while after is not None:
                params = {"after": after, "limit": 2, "actor": "ana", "verb": "submit"}
                page = http.get("/v1/events", params=params).json()
                seen += page["items"]
                after = page["next_after"]
        assert len(seen) >= 3
        assert [one["seq"] for one in seen] == sorted({one["seq"] for one in seen})
        assert {(one["actor"], one["verb"]) for one in seen} == {("ana", "submit")}

    def test_for_administrators_of_their_own_project(self, api: Api) -> None:
        api.submitted()
        with api.http("ana") as http:
            assert http.get("/v1/events").status_code == 403
        with api.http("eve") as http:
            items = http.get("/v1/events").json()["items"]
        assert {item["verb"] for item in items} == {"token.create"}
        assert all("for eve" in item["message"] for item in items)

    def test_who_was_refused_is_in_the_log(
        self, api: Api, caplog: pytest.LogCaptureFixture
    ) -> None:
        with api.http("vera") as http:
            http.get("/v1/tokens")
        assert "refused code=forbidden owner=vera from=127.0.0.1 method=GET" in caplog.text
