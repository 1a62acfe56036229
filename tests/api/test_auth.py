from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from stoplab_platform.jobs.models import Role
from stoplab_platform.jobs.states import State
from support_api import SPEC, Api, running_api, secret


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("home")) as running:
        yield running


PATHS = [
    ("GET", "/v1/jobs"),
    ("POST", "/v1/jobs"),
    ("GET", "/v1/jobs/j_x"),
    ("PATCH", "/v1/jobs/j_x"),
    ("DELETE", "/v1/jobs/j_x"),
    ("POST", "/v1/jobs/j_x/cancel"),
    ("POST", "/v1/jobs/j_x/pause"),
    ("POST", "/v1/jobs/j_x/resume"),
    ("POST", "/v1/jobs/j_x/retry"),
    ("GET", "/v1/jobs/j_x/logs"),
    ("GET", "/v1/jobs/j_x/logs?follow=true"),
    ("GET", "/v1/jobs/j_x/events"),
    ("GET", "/v1/jobs/j_x/trials"),
    ("GET", "/v1/jobs/j_x/comparison"),
    ("GET", "/v1/jobs/j_x/surface"),
    ("GET", "/v1/jobs/j_x/estimate"),
    ("GET", "/v1/jobs/j_x/metrics"),
    ("GET", "/v1/jobs/j_x/artifacts"),
    ("GET", "/v1/jobs/j_x/artifacts/a_x"),
    ("POST", "/v1/jobs/j_x/extend"),
    ("POST", "/v1/estimates"),
    ("GET", "/v1/me"),
    ("GET", "/v1/cluster"),
    ("GET", "/v1/schema/pretrain"),
    ("GET", "/v1/events"),
    ("GET", "/v1/tokens"),
    ("POST", "/v1/tokens"),
    ("DELETE", "/v1/tokens/t_x"),
    ("POST", "/v1/tokens/t_x/rotate"),
]


class TestToken:
    @pytest.mark.parametrize(("method", "path"), PATHS)
    def test_every_call_needs_one(self, api: Api, method: str, path: str) -> None:
        with api.http(None) as http:
            answer = http.request(method, path, content=b"{")
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert answer.json()["code"] == "unauthenticated"

    def test_the_list_of_calls_is_whole(self, api: Api) -> None:
        with api.http(None) as http:
            page = http.get("/openapi.json").json()
        guarded = {
            (method.upper(), path)
            for path, methods in page["paths"].items()
            for method in methods
            if path.startswith("/v1") and "/problems/" not in path
        }
        names = {"j_x": "{job_id}", "t_x": "{token_id}", "pretrain": "{kind}", "a_x": "{path}"}
        tried = {
            (method, "/".join(names.get(part, part) for part in path.partition("?")[0].split("/")))
            for method, path in PATHS
        }
        assert tried == guarded

    @pytest.mark.parametrize("value", ["Bearer wrong", "Basic YTpi", "Bearer", "stl_ana"])
    def test_a_wrong_one_is_none(self, api: Api, value: str) -> None:
        answer = httpx.get(f"{api.url}/v1/me", headers={"Authorization": value}, trust_env=False)
        assert answer.status_code == 401

    def test_an_expired_one_is_none(self, api: Api) -> None:
        past = datetime.now(UTC) - timedelta(seconds=1)
        _, word = api.store.create_token(
            "old", owner="ana", project="default", role=Role.ADMIN, expires_at=past
        )
        headers = {"Authorization": f"Bearer {word}"}
        answer = httpx.get(f"{api.url}/v1/me", headers=headers, trust_env=False)
        assert answer.status_code == 401
        assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]

    def test_it_says_who(self, api: Api) -> None:
        with api.http("vera") as http:
            told = http.get("/v1/me").json()
        assert told == {"owner": "vera", "project": "default", "role": "viewer", "scopes": None}


class TestRoles:
    def test_viewers_read(self, api: Api) -> None:
        job = api.submitted()
        with api.http("vera") as http:
            assert http.get(f"/v1/jobs/{job['id']}").status_code == 200
            assert http.get(f"/v1/jobs/{job['id']}/logs").status_code == 200

    def test_viewers_change_nothing(self, api: Api) -> None:
        job = api.submitted()
        with api.http("vera") as http:
            answers = [
                http.post("/v1/jobs", json={"spec": SPEC}),
                http.post(f"/v1/jobs/{job['id']}/cancel"),
                http.patch(f"/v1/jobs/{job['id']}", json={}, headers={"If-Match": "*"}),
                http.delete(f"/v1/jobs/{job['id']}"),
                http.get("/v1/tokens"),
            ]
        assert [answer.status_code for answer in answers] == [403] * 5
        assert {answer.json()["code"] for answer in answers} == {"forbidden"}

    def test_submitters_change_their_own_only(self, api: Api) -> None:
        job = api.submitted()
        with api.http("bob") as http:
            assert http.post(f"/v1/jobs/{job['id']}/cancel").status_code == 403
            patch = http.patch(
                f"/v1/jobs/{job['id']}", json={"priority": 1}, headers={"If-Match": "*"}
            )
            assert patch.status_code == 403
        assert api.store.get(job["id"]).state is State.QUEUED

    def test_admins_change_all_of_their_project(self, api: Api) -> None:
        job = api.submitted()
        with api.http("root") as http:
            assert http.post(f"/v1/jobs/{job['id']}/cancel").status_code == 202

    def test_another_projects_admin_sees_nothing(self, api: Api) -> None:
        job = api.submitted()
        with api.http("eve") as http:
            for method, path in PATHS:
                if "j_x" in path:
                    answer = http.request(
                        method,
                        path.replace("j_x", job["id"]),
                        headers={"If-Match": "*"},
                        content=b"{}",
                    )
                    assert answer.status_code == 404, (method, path)
            assert http.get("/v1/jobs").json()["items"] == []


class TestTokens:
    def test_only_admins(self, api: Api) -> None:
        with api.http("ana") as http:
            body = {"name": "x", "owner": "ana", "role": "admin"}
            assert http.post("/v1/tokens", json=body).status_code == 403

    def test_the_secret_is_shown_once_and_works_until_revoked(self, api: Api) -> None:
        with api.http("root") as http:
            made = http.post("/v1/tokens", json={"name": "laptop", "owner": "kim"})
            assert made.status_code == 201
            token = made.json()
            assert token["role"] == "submitter"
            assert token["expires_at"] is None
            headers = {"Authorization": f"Bearer {token['secret']}"}
            me = httpx.get(f"{api.url}/v1/me", headers=headers, trust_env=False)
            assert me.json()["owner"] == "kim"
            assert me.json()["role"] == "submitter"

            listed = http.get("/v1/tokens")
            assert token["secret"] not in listed.text
            assert token["id"] in {one["id"] for one in listed.json()["items"]}

            assert http.delete(f"/v1/tokens/{token['id']}").status_code == 204
            again = httpx.get(f"{api.url}/v1/me", headers=headers, trust_env=False)
            assert again.status_code == 401

    def test_expiry_in_days(self, api: Api) -> None:
        with api.http("root") as http:
            body = {"name": "short", "owner": "kim", "expires_in_days": 2}
            told = http.post("/v1/tokens", json=body).json()
        left = datetime.fromisoformat(told["expires_at"]) - datetime.now(UTC)
        assert timedelta(days=1.9) < left < timedelta(days=2.1)

    def test_another_projects_token_is_unknown(self, api: Api) -> None:
        (token,) = [one for one in api.store.tokens("default") if one.owner == "vera"]
        with api.http("eve") as http:
            assert http.delete(f"/v1/tokens/{token.id}").status_code == 404
            listed = http.get("/v1/tokens").json()["items"]
        assert [one["owner"] for one in listed] == ["eve"]

    def test_secrets_are_not_at_rest(self, api: Api) -> None:
        home: Path = api.lab.settings.home
        for path in home.glob("stoplab.db*"):
            assert secret("ana").encode() not in path.read_bytes()
