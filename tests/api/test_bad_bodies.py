"""Whatever is sent, the answer is a problem that says so: soon, and never a failure of ours."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from time import perf_counter

import httpx
import pytest

from stoplab_api.answers import ProblemBody
from stoplab_platform.jobs.states import State
from support_api import COMPARE, SPEC, Api, running_api, secret
from support_bad_requests import SWEEP, Bad, requests

SEED = 20261125
PATIENCE_S = 5.0
"""For one answer. Each takes a fraction of it where the machine has nothing else to do."""
UNSPOKEN = (b"GET / HTTP/9.9", b"\x16\x03\x01\x02\x00", b"GET  /v1/me", b"POST /v1/jobs HTTP/1.1")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("home"), rate_per_s=0) as running:
        yield running


def test_five_hundred(api: Api) -> None:
    tried(api, SEED, 500)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(10))
def test_ten_thousand(api: Api, part: int) -> None:
    tried(api, SEED + 1 + part, 1000)


def tried(api: Api, seed: int, count: int) -> None:
    """Send that many, look at each answer; the server lives on, and its jobs are unharmed."""
    refused = 0
    with api.http("root") as http:
        for number, bad in enumerate(requests(seed, count, jobs(api))):
            answer, seconds = sent(http, bad)
            told = f"{seed}-{number}: {bad.method} {bad.path[:200]} {bad.headers}"
            told += f"\n{bad.content[:2000]!r}\n{answer.status_code} {answer.text[:1000]}"
            assert answer.status_code < 500, told
            assert "Traceback" not in answer.text, told
            assert seconds < PATIENCE_S, f"{seconds:.1f} s: {told}"
            if answer.status_code >= 400:
                refused += 1
                assert answer.headers["Content-Type"] == "application/problem+json", told
                assert ProblemBody.model_validate(answer.json()).status == answer.status_code
        assert refused > count / 2
        assert http.get("/readyz").json()["checks"]["database"]["ok"]
        assert http.post("/v1/jobs", json={"spec": SPEC}).status_code == 202


def jobs(api: Api) -> list[str]:
    """One that waits, and a finished one of each kind that can be gone on from."""
    made = [api.submitted(spec)["id"] for spec in (SPEC, SPEC, SWEEP, COMPARE)]
    for job_id in made[1:]:
        api.moved(job_id, State.CANCELLED)
    return made


def sent(http: httpx.Client, bad: Bad) -> tuple[httpx.Response, float]:
    """The answer and the seconds until it was there."""
    headers = {name: value.encode("utf-8") for name, value in bad.headers.items()}
    began = perf_counter()
    answer = http.request(bad.method, bad.path, content=bad.content, headers=headers)  # type: ignore[arg-type]
    return answer, perf_counter() - began


@pytest.mark.parametrize("first", UNSPOKEN)
def test_what_is_no_http(api: Api, first: bytes) -> None:
    assert b" 4" in said(api, first + b"\r\nHost\r\n\r\n")


def test_chunks_without_a_length(api: Api) -> None:
    head = b"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
    head += f"Authorization: Bearer {secret('ana')}\r\n\r\n".encode()
    assert b" 400 " in said(api, head + b"5\r\n{bad}\r\n0\r\n\r\n")
    assert b" 400 " in said(api, head + b"zz\r\n")


def test_headers_without_an_end(api: Api) -> None:
    assert b" 4" in said(api, b"GET /v1/me HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 300_000)


def said(api: Api, request: bytes) -> bytes:
    """The first line of the answer to some bytes."""
    address = httpx.URL(api.url)
    with socket.create_connection((address.host, address.port or 0), timeout=10) as line:
        try:
            line.sendall(request)
        except ConnectionError:  # it has heard enough; what it said lies here
            pass
        return line.recv(65536).split(b"\r\n")[0]
