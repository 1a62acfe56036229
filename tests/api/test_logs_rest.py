from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from stoplab_api import logs, sse
from stoplab_api.logs import CHUNK
from stoplab_api.routers import logs as routes
from stoplab_platform.jobs.models import Role
from stoplab_platform.jobs.states import State
from support_api import Api, eventually, running_api


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("home")) as running:
        yield running


@dataclass
class Seen:
    """One event as the line carries it."""

    event: str
    data: str
    id: str


def live(answer: httpx.Response) -> Iterator[Seen]:
    """Events as they come; on loopback an event arrives whole."""
    for block in answer.iter_raw():
        yield from parsed(block)


def follow(api: Api, job_id: str, **headers: str) -> list[Seen]:
    """A whole stream of a job that ends."""
    with api.http() as http:
        answer = http.get(f"/v1/jobs/{job_id}/logs?follow=true", headers=headers)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    return list(parsed(answer.content))


def parsed(content: bytes) -> Iterator[Seen]:
    """Server-sent events, comments left out."""
    for part in content.decode().split("\n\n"):
        fields: dict[str, list[str]] = {}
        for line in part.split("\n"):
            name, _, value = line.partition(": ")
            fields.setdefault(name, []).append(value)
        if "data" in fields:
            yield Seen(fields["event"][0], "\n".join(fields["data"]), fields["id"][0])


def finished(api: Api, log: bytes) -> str:
    job_id: str = api.submitted()["id"]
    api.write_log(job_id, log)
    api.moved(job_id, State.SUCCEEDED)
    return job_id


class TestText:
    def test_before_the_file_exists(self, api: Api) -> None:
        job = api.submitted()
        with api.http() as http:
            answer = http.get(f"/v1/jobs/{job['id']}/logs")
        assert (answer.status_code, answer.content) == (200, b"")

    def test_the_bytes_as_they_are(self, api: Api) -> None:
        raw = b"one\r\n\xff\xfe two\r progress\x1b[0m\n\x00" + b"z" * (3 * CHUNK)
        with api.http() as http:
            answer = http.get(f"/v1/jobs/{finished(api, raw)}/logs")
        assert answer.content == raw
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"

    def test_a_rank(self, api: Api) -> None:
        job = api.submitted()
        path = api.folder(job["id"]).rank_log(1)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"I am 1\n")
        with api.http() as http:
            assert http.get(f"/v1/jobs/{job['id']}/logs?rank=1").content == b"I am 1\n"
            assert http.get(f"/v1/jobs/{job['id']}/logs?rank=0").content == b""

    def test_the_tail(self, api: Api) -> None:
        job_id = finished(api, b"1\n2\n3\n")
        with api.http() as http:
            tails = [http.get(f"/v1/jobs/{job_id}/logs?tail={n}").content for n in (0, 1, 2, 9)]
            assert http.get(f"/v1/jobs/{job_id}/logs?tail=-1").status_code == 400
        assert tails == [b"", b"3\n", b"2\n3\n", b"1\n2\n3\n"]


class TestTailStart:
    @pytest.mark.parametrize("ending", [b"", b"\n"])
    @pytest.mark.parametrize("length", [3, CHUNK // 2 - 1, CHUNK // 2, CHUNK - 1, CHUNK, CHUNK + 1])
    def test_over_the_edges_of_blocks(self, tmp_path: Path, length: int, ending: bytes) -> None:
        lines = [b"x" * length for _ in range(4)]
        data = b"\n".join(lines) + ending
        path = tmp_path / "log"
        path.write_bytes(data)
        for wanted in range(6):
            tail = data[logs.tail_start(path, wanted) :]
            assert tail == (b"\n".join(lines[-wanted:]) + ending if wanted else b"")


class TestFollow:
    def test_a_finished_job_to_its_end(self, api: Api) -> None:
        raw = "one\ntwo\n\nno end of line: é".encode()
        seen = follow(api, finished(api, raw))
        assert "".join(one.data for one in seen[:-1]).encode() == raw
        assert (seen[-1].event, json.loads(seen[-1].data)) == ("end", {"state": "SUCCEEDED"})
        assert [one.id for one in seen] == ["9", str(len(raw)), str(len(raw))]

    def test_long_lines_are_split_between_characters(self, api: Api) -> None:
        raw = ("a" + "é" * CHUNK + "\nlast\n").encode()
        seen = follow(api, finished(api, raw))
        sizes = [len(one.data.encode()) for one in seen[:-1]]
        assert max(sizes) <= CHUNK
        assert sizes[0] == CHUNK - 1, "the character at the edge is whole"
        assert "".join(one.data for one in seen[:-1]).encode() == raw
        offset = 0
        for one in seen[:-1]:
            offset += len(one.data.encode())
            assert int(one.id) == offset

    def test_bytes_that_are_no_text(self, api: Api) -> None:
        seen = follow(api, finished(api, b"a\xffb\nc\n"))
        assert seen[0].data == "a\ufffdb\nc\n"
        assert seen[0].id == "6"

    def test_it_goes_on_after_the_last_event(self, api: Api) -> None:
        job_id = finished(api, b"one\ntwo\n")
        assert follow(api, job_id, **{"Last-Event-ID": "4"})[0].data == "two\n"
        assert [one.event for one in follow(api, job_id, **{"Last-Event-ID": "8"})] == ["end"]
        with api.http() as http:
            bad = http.get(f"/v1/jobs/{job_id}/logs?follow=true", headers={"Last-Event-ID": "four"})
        assert bad.status_code == 400

    def test_it_follows_a_job_that_lives(self, api: Api) -> None:
        job_id = api.submitted()["id"]
        api.moved(job_id, State.RUNNING)
        with api.http() as http, http.stream("GET", f"/v1/jobs/{job_id}/logs?follow=1") as answer:
            assert answer.status_code == 200
            stream = live(answer)
            api.write_log(job_id, b"one\ntw")
            assert next(stream) == Seen("log", "one\n", "4")
            api.write_log(job_id, b"o\nthree")
            assert next(stream) == Seen("log", "two\n", "8")
            job = api.store.get(job_id)
            api.store.move(job, State.FAILED, actor="test")
            assert next(stream) == Seen("log", "three", "13")
            assert next(stream) == Seen("end", '{"state": "FAILED"}', "13")
            with pytest.raises(StopIteration):
                next(stream)

    def test_it_ends_with_the_token(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(routes, "TOKEN_S", 0.1)
        job_id = api.submitted()["id"]
        for kind in ("logs", "events"):
            token, word = api.store.create_token(
                kind, owner="ana", project="default", role=Role.VIEWER
            )
            headers = {"Authorization": f"Bearer {word}"}
            url = f"/v1/jobs/{job_id}/{kind}?follow=1"
            with api.http(None) as http, http.stream("GET", url, headers=headers) as answer:
                assert answer.status_code == 200
                api.store.revoke_token(token.id)
                assert "event: end" not in "".join(answer.iter_text()), "the job lives"

    def test_tail(self, api: Api) -> None:
        job_id = finished(api, b"1\n2\n3\n")
        with api.http() as http:
            answer = http.get(f"/v1/jobs/{job_id}/logs?follow=true&tail=1")
        assert next(parsed(answer.content)).data == "3\n"

    def test_silence_is_broken_by_comments(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        assert sse.HEARTBEAT_S + 1 <= 15
        monkeypatch.setattr(sse, "HEARTBEAT_S", 0.1)
        job_id = api.submitted()["id"]
        with api.http() as http, http.stream("GET", f"/v1/jobs/{job_id}/logs?follow=1") as answer:
            lines = answer.iter_lines()
            assert next(lines) == ": stream"
            assert eventually(lambda: next(lines) == ": heartbeat")

    def test_the_server_ends_with_a_stream_open(
        self, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        with running_api(tmp_path_factory.mktemp("closing")) as other:
            job_id = other.submitted()["id"]
            with (
                other.http() as http,
                http.stream("GET", f"/v1/jobs/{job_id}/logs?follow=1") as answer,
            ):
                blocks = answer.iter_raw()
                next(blocks)
                started = time.monotonic()
                other.server.should_exit = True
                assert b"end" not in b"".join(blocks), "the job has not ended"
        assert time.monotonic() - started < 4, "streams end at once, not when grace is over"


class TestEvents:
    def test_the_history(self, api: Api) -> None:
        job_id = finished(api, b"")
        with api.http() as http:
            items = http.get(f"/v1/jobs/{job_id}/events").json()["items"]
        assert [item["to_state"] for item in items] == [
            "QUEUED",
            "STARTING",
            "RUNNING",
            "SUCCEEDED",
        ]
        assert (items[0]["actor"], items[0]["verb"]) == ("ana", "submit")
        assert [item["seq"] for item in items] == sorted(item["seq"] for item in items)

    def test_as_a_stream(self, api: Api) -> None:
        job_id: str = api.submitted()["id"]
        path = f"/v1/jobs/{job_id}/events"
        mover = threading.Thread(target=api.moved, args=(job_id, State.SUCCEEDED))
        with api.http() as http, http.stream("GET", f"{path}?follow=1") as answer:
            stream = live(answer)
            first = next(stream)
            assert json.loads(first.data)["verb"] == "submit"
            mover.start()
            rest = list(stream)
        mover.join()
        states = [json.loads(one.data).get("to_state") for one in rest[:-1]]
        assert states == ["STARTING", "RUNNING", "SUCCEEDED"]
        assert rest[-1].event == "end"
        with api.http() as http:
            again = http.get(f"{path}?follow=1", headers={"Last-Event-ID": rest[-2].id})
            one = http.get(path, headers={"Last-Event-ID": rest[-3].id}).json()["items"]
        assert [seen.event for seen in parsed(again.content)] == ["end"]
        assert [item["to_state"] for item in one] == ["SUCCEEDED"]
