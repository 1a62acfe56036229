from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from stoplab_api.answers import Code, ProblemBody
from stoplab_api.deps import MAX_BODY
from stoplab_api.problems import KINDS
from stoplab_platform.errors import StoreUnavailable
from support_api import SPEC, Api, running_api


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def http(api: Api) -> Iterator[httpx.Client]:
    with api.http() as client:
        yield client


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The problem, held to RFC 9457 and to our own members."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    ProblemBody.model_validate(body)
    assert (body["status"], body["code"]) == (status, code)
    assert body["instance"] == answer.request.url.path
    assert body["request_id"] == answer.headers["X-Request-ID"]
    assert "Traceback" not in answer.text
    return body


class TestSpecs:
    def test_three_mistakes_are_three_errors(self, http: httpx.Client) -> None:
        spec = {
            **SPEC,
            "positions": {"kind": "stochastic", "noise_std": -1},
            "optim": {**SPEC["optim"], "batch_size": "many"},
            "colour": "red",
        }
        body = problem(http.post("/v1/jobs", json={"spec": spec}), 422, "invalid-spec")
        assert {error["pointer"] for error in body["errors"]} == {
            "/spec/positions/noise_std",
            "/spec/optim/batch_size",
            "/spec/colour",
        }
        assert all(error["message"] for error in body["errors"])

    @pytest.mark.parametrize("spec", [None, 3, "x", [], {}, {"kind": "bake"}])
    def test_no_spec_at_all(self, http: httpx.Client, spec: Any) -> None:
        problem(http.post("/v1/jobs", json={"spec": spec}), 422, "invalid-spec")

    def test_a_job_that_can_never_fit(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        home = tmp_path_factory.mktemp("small")
        with running_api(home, capacity_cpus=1) as small, small.http() as client:
            spec = {**SPEC, "compute": {"workers": 2}}
            body = problem(client.post("/v1/jobs", json={"spec": spec}), 422, "invalid-spec")
        assert body["errors"][0]["pointer"] == "/spec/compute/workers"


class TestBodies:
    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"\xff", b'{"spec": NaN}', b'{"spec": 1e999}', b'{"spec": "\\ud800"}',
         b"[" * 5000 + b"]" * 5000, b"[" * 90 + b"]" * 90],
    )  # fmt: skip
    @pytest.mark.parametrize("kind", [None, "application/json"])
    def test_no_json(self, http: httpx.Client, content: bytes, kind: str | None) -> None:
        headers = {"Content-Type": kind} if kind else {}
        answer = http.post("/v1/jobs", content=content, headers=headers)
        problem(answer, 400, "malformed-request")

    @pytest.mark.parametrize(
        ("body", "pointer"),
        [
            ([], ""),
            ({}, "/spec"),
            ({"spec": SPEC, "priority": "1"}, "/priority"),
            ({"spec": SPEC, "labels": {"a": 1}}, "/labels/a"),
            ({"spec": SPEC, "labels": {"a:b": "1"}}, "/labels/a:b"),
            ({"spec": SPEC, "labels": {"a": "line\nbreak"}}, "/labels/a"),
            ({"spec": SPEC, "nmae": "x"}, "/nmae"),
        ],
    )
    def test_the_pointer_names_the_field(self, http: httpx.Client, body: Any, pointer: str) -> None:
        told = problem(http.post("/v1/jobs", json=body), 422, "invalid-body")
        assert pointer in [error["pointer"] for error in told["errors"]]

    def test_another_media_type(self, http: httpx.Client) -> None:
        answer = http.post("/v1/jobs", content=b"x", headers={"Content-Type": "text/yaml"})
        problem(answer, 415, "unsupported-media-type")

    def test_too_large_as_announced(self, http: httpx.Client) -> None:
        answer = http.post("/v1/jobs", content=b"x" * (MAX_BODY + 1))
        problem(answer, 413, "body-too-large")

    def test_too_large_without_an_announcement(self, http: httpx.Client) -> None:
        def parts() -> Iterator[bytes]:
            for _ in range(MAX_BODY // 65536 + 1):
                yield b" " * 65536

        problem(http.post("/v1/jobs", content=parts()), 413, "body-too-large")

    @pytest.mark.parametrize("key", ["", "a\tb", "x" * 256])
    def test_a_bad_key(self, http: httpx.Client, key: str) -> None:
        answer = http.post("/v1/jobs", json={"spec": SPEC}, headers={"Idempotency-Key": key})
        problem(answer, 400, "malformed-request")


class TestPaths:
    def test_unknown_path(self, http: httpx.Client) -> None:
        problem(http.get("/v1/nothing"), 404, "not-found")

    def test_unknown_method(self, http: httpx.Client) -> None:
        answer = http.put("/v1/jobs")
        problem(answer, 405, "method-not-allowed")
        assert answer.headers["Allow"]

    def test_unknown_parameter(self, http: httpx.Client) -> None:
        body = problem(http.get("/v1/me?verbose=1"), 400, "malformed-request")
        assert body["errors"][0]["pointer"] == "?verbose"

    def test_every_type_has_its_page(self, api: Api) -> None:
        with api.http(None) as anybody:
            for code in Code:
                page = anybody.get(f"/v1/problems/{code}").json()
                assert page["status"] == KINDS[code].status
                assert page["explanation"]


class TestRequestId:
    def test_the_clients_own_is_echoed(self, http: httpx.Client) -> None:
        answer = http.get("/v1/nothing", headers={"X-Request-ID": "mine-1"})
        assert problem(answer, 404, "not-found")["request_id"] == "mine-1"

    @pytest.mark.parametrize("given", [None, "two words", "x" * 200])
    def test_else_one_is_made(self, http: httpx.Client, given: str | None) -> None:
        headers = {"X-Request-ID": given} if given else {}
        made = [http.get("/v1/me", headers=headers).headers["X-Request-ID"] for _ in range(2)]
        assert made[0] != made[1]
        assert given not in made


class TestAway:
    def test_the_database(
        self, api: Api, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object, **__: object) -> None:
            raise StoreUnavailable("the database does not answer: gone")

        monkeypatch.setattr(api.store, "submit", broken)
        answer = http.post("/v1/jobs", json={"spec": SPEC})
        problem(answer, 503, "database-unavailable")
        assert int(answer.headers["Retry-After"]) > 0

    def test_a_mistake_of_ours_tells_nothing(
        self, api: Api, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("password=hunter2")

        monkeypatch.setattr(api.lab.jobs, "list", broken)
        answer = http.get("/v1/jobs")
        problem(answer, 500, "internal")
        assert "hunter2" not in answer.text
