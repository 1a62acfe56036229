from __future__ import annotations

import inspect
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from stoplab_api import exchange
from stoplab_api.client import ApiError, AsyncClient, Client, Unreachable
from stoplab_api.exchange import EventReader, NotStoplab, StreamEvent, Tries, retry_after_s
from stoplab_platform.errors import SettingsError
from stoplab_platform.files import write_json
from stoplab_platform.jobs.states import State
from stoplab_platform.ledger import Cell, Ledger
from stoplab_platform.specs import parse_spec
from support_api import COMPARE, SPEC, Api, eventually, running_api, secret
from support_client import Connect, blocking, driven
from support_lines import Proxy, proxied, scripted


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module", params=[blocking, driven], ids=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Opens a client: every test below runs with both kinds."""
    chosen: Connect = request.param
    return chosen


@pytest.fixture(scope="module")
def client(api: Api, connect: Connect) -> Iterator[Client]:
    with connect(api.url, secret("ana")) as made:
        yield made


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(exchange, "RETRY_S", 0.02)


class TestJobs:
    def test_submit_get_list_cancel(self, client: Client) -> None:
        job = client.submit(SPEC, labels={"from": "client"}, priority=2)
        assert client.get(job.id) == job
        page = client.list(labels={"from": "client"}, states=["QUEUED"], kinds=["pretrain"])
        assert [one.id for one in page.items] == [job.id]
        assert client.cancel(job.id).status.state == "CANCELLED"
        assert client.list(labels={"from": "client"}, states=["QUEUED"]).items == []

    def test_a_spec_object_is_a_spec(self, client: Client) -> None:
        spec = parse_spec(SPEC)
        assert client.submit(spec).spec_digest == spec.digest()
        assert client.dry_run(spec).spec_digest == spec.digest()

    def test_each_submit_is_another_job_unless_the_key_is_the_same(self, client: Client) -> None:
        assert client.submit(SPEC).id != client.submit(SPEC).id
        assert client.submit(SPEC, key="k1").id == client.submit(SPEC, key="k1").id

    def test_change(self, client: Client) -> None:
        job = client.submit(SPEC, labels={"a": "1"})
        changed = client.change(job, labels={"a": None, "b": "2"}, priority=4)
        assert (changed.labels, changed.priority) == ({"b": "2"}, 4)
        with pytest.raises(ApiError, match="has changed") as caught:
            client.change(job, priority=5)
        assert caught.value.status == 412

    def test_the_rest_of_a_life(self, client: Client) -> None:
        job = client.submit(SPEC)
        assert client.pause(job.id).status.state == "PAUSED"
        assert client.resume(job.id).status.state == "QUEUED"
        client.cancel(job.id)
        assert client.retry(job.id).retry_of == job.id
        client.delete(job.id)
        with pytest.raises(ApiError) as caught:
            client.get(job.id)
        assert (caught.value.status, caught.value.code) == (404, "not-found")

    def test_studies(self, api: Api, client: Client) -> None:
        job = client.submit(COMPARE)
        folder = api.folder(job.id)
        Ledger(folder).plan([Cell(id="a-s0", index=0, arm="a", seed=0)])
        assert client.trials(job.id, states=["PENDING"]).items[0].id == "a-s0"
        with pytest.raises(ApiError):
            client.comparison(job.id)
        write_json(folder.comparison, {"verdict": "worse"})
        assert client.comparison(job.id) == {"verdict": "worse"}

    def test_the_lab(self, api: Api, client: Client, connect: Connect) -> None:
        assert client.me().owner == "ana"
        assert client.cluster().runner.alive
        assert client.schema("sweep")["title"] == "SweepSpec"
        with connect(api.url, secret("root")) as admin:
            token = admin.create_token("t", owner="kim", role="viewer", expires_in_days=1)
            with connect(api.url, token.secret) as kim:
                assert kim.me().role == "viewer"
                admin.revoke_token(token.id)
                with pytest.raises(ApiError) as caught:
                    kim.me()
            assert token.id in [one.id for one in admin.tokens()]
        assert caught.value.status == 401


class TestErrors:
    def test_every_mistake_is_in_the_message(self, client: Client) -> None:
        with pytest.raises(ApiError) as caught:
            client.submit({**SPEC, "seed": -1, "colour": "red"})
        assert caught.value.code == "invalid-spec"
        assert "/spec/seed" in str(caught.value)
        assert "/spec/colour" in str(caught.value)

    def test_nobody_there(self, hasty: None, connect: Connect) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        with connect(f"http://127.0.0.1:{port}", None) as client:
            with pytest.raises(Unreachable, match=str(port)):
                client.get("j_x")
            with pytest.raises(Unreachable):
                client.cancel("j_x")

    def test_somebody_else_there(self, api: Api, connect: Connect) -> None:
        with connect(f"{api.url}/elsewhere", None) as client, pytest.raises(ApiError) as caught:
            client.me()
        assert caught.value.status == 404

    @pytest.mark.parametrize("job_id", ["", "a/b", "../tokens", "j_1?follow=true", "j_1#x", "ü"])
    def test_what_is_no_id_names_no_other_page(self, client: Client, job_id: str) -> None:
        with pytest.raises(ApiError) as caught:
            client.get(job_id)
        assert caught.value.status == 404

    @pytest.mark.parametrize("url", ["127.0.0.1:8800", "http://", "http://a:b", "ftp://a", ""])
    def test_what_is_no_address(self, connect: Connect, url: str) -> None:
        with pytest.raises(SettingsError, match="no server's address"), connect(url, None):
            pass

    @pytest.mark.parametrize("token", ["two words", "ünsinn", "a\nb", ""])
    def test_what_is_no_token_is_not_shown(self, connect: Connect, token: str) -> None:
        with (
            pytest.raises(SettingsError, match="token") as caught,
            connect("http://127.0.0.1:1", token),
        ):
            pass
        assert not token or token not in str(caught.value)


ME = '{"owner": "ana", "project": "default", "role": "viewer"}'


class TestBusyServers:
    @pytest.mark.parametrize("status", [429, 503])
    def test_later_means_later(self, hasty: None, connect: Connect, status: int) -> None:
        busy = (status, {"Retry-After": "0"}, "")
        with scripted(busy, busy, (200, {}, ME)) as (url, asked), connect(url, None) as client:
            assert client.me().owner == "ana"
            assert len(asked) == 3

    def test_patience_with_one_that_stays_busy(self, hasty: None, connect: Connect) -> None:
        with (
            scripted((503, {"Retry-After": "0"}, "")) as (url, asked),
            connect(url, None) as client,
            pytest.raises(ApiError) as caught,
        ):
            client.me()
        assert (caught.value.status, caught.value.retry_after_s, len(asked)) == (503, 0, 3)

    def test_a_long_time_is_told_not_waited_for(self, connect: Connect) -> None:
        with (
            scripted((429, {"Retry-After": "3600"}, "")) as (url, asked),
            connect(url, None) as client,
            pytest.raises(ApiError) as caught,
        ):
            client.me()
        assert (caught.value.retry_after_s, len(asked)) == (3600, 1)

    def test_the_server_names_the_pause(self) -> None:
        answer = httpx.Response(503, headers={"Retry-After": "7"})
        tries = Tries("http://x", safe=True)
        pauses = [tries.after_answer(answer) for _ in range(4)]
        assert pauses == [7, 7, 7, None]
        slow = httpx.Response(503, headers={"Retry-After": "40"})
        tries = Tries("http://x", safe=True)
        assert [tries.after_answer(slow) for _ in range(2)] == [40, None], "patience is for all"
        assert tries.after_answer(httpx.Response(200)) is None

    def test_pauses_grow_and_differ(self) -> None:
        answer = httpx.Response(503)
        seen = [Tries("http://x", safe=True).after_answer(answer) for _ in range(20)]
        assert all(pause is not None and 0.15 <= pause <= 0.25 for pause in seen)
        assert len(set(seen)) > 1

    @pytest.mark.parametrize(
        ("text", "least", "most"),
        [("12", 12, 12), ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
         ("Wed, 21 Oct 2099 07:28:00 GMT", 1e9, 1e10)],
    )  # fmt: skip
    def test_retry_after(self, text: str, least: float, most: float) -> None:
        found = retry_after_s(httpx.Response(503, headers={"Retry-After": text}))
        assert found is not None
        assert least <= found <= most
        assert retry_after_s(httpx.Response(503, headers={"Retry-After": "soon"})) is None

    @pytest.mark.parametrize("text", ["<html>", "[]", "{}"])
    def test_another_kind_of_server(self, connect: Connect, text: str) -> None:
        with (
            scripted((200, {}, text)) as (url, _),
            connect(url, None) as client,
            pytest.raises(NotStoplab, match="not as a stoplab server"),
        ):
            client.me()

    def test_a_redirect_is_no_answer(self, connect: Connect) -> None:
        with (
            scripted((302, {"Location": "/login"}, "")) as (url, _),
            connect(url, None) as client,
            pytest.raises(ApiError) as caught,
        ):
            client.me()
        assert caught.value.status == 302


class TestBrokenLines:
    def test_a_submit_whose_answer_was_lost_is_one_job(
        self, api: Api, hasty: None, connect: Connect
    ) -> None:
        with proxied(api.url) as proxy, connect(proxy.url, secret("ana")) as client:
            proxy.deaf = 1
            name = f"lost-{secrets.token_hex(4)}"
            job = client.submit({**SPEC, "name": name})
            assert proxy.accepted == 2, "it was asked twice"
            assert [one.id for one in client.list(q=name).items] == [job.id]

    def test_what_may_not_be_repeated_is_not(self, api: Api, hasty: None, connect: Connect) -> None:
        job = api.submitted()
        with proxied(api.url) as proxy, connect(proxy.url, secret("ana")) as client:
            proxy.deaf = 1
            with pytest.raises(Unreachable):
                client.pause(job["id"])
            assert proxy.accepted == 1
        assert api.store.get(job["id"]).state is State.PAUSED

    def test_a_log_is_followed_over_a_cut(self, api: Api, hasty: None, connect: Connect) -> None:
        job_id = api.submitted()["id"]
        api.write_log(job_id, b"one\n")
        with proxied(api.url) as proxy, connect(proxy.url, secret("ana")) as client:
            pieces = client.logs(job_id, follow=True)
            assert next(pieces) == "one\n"
            proxy.cut()
            api.write_log(job_id, "two\u2028still two\n".encode())
            assert next(pieces) == "two\u2028still two\n"
            proxy.cut()
            api.moved(job_id, State.SUCCEEDED)
            assert list(pieces) == []
            assert proxy.accepted >= 3

    def test_patience_ends(
        self, api: Api, hasty: None, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(exchange, "PATIENCE_S", 0.1)
        job_id = api.submitted()["id"]
        api.write_log(job_id, b"one\n")
        proxy = Proxy(api.url)
        with connect(proxy.url, secret("ana")) as client:
            pieces = client.logs(job_id, follow=True)
            next(pieces)
            proxy.close()
            with pytest.raises(Unreachable):
                next(pieces)


class TestStreams:
    def test_logs(self, api: Api, client: Client) -> None:
        job = client.submit(SPEC)
        assert "".join(client.logs(job.id)) == ""
        api.write_log(job.id, b"1\n2\n3")
        assert "".join(client.logs(job.id)) == "1\n2\n3"
        assert "".join(client.logs(job.id, tail=1)) == "3"
        api.moved(job.id, State.FAILED)
        assert "".join(client.logs(job.id, follow=True)) == "1\n2\n3"
        with pytest.raises(ApiError):
            next(client.logs("j_x", follow=True))
        with pytest.raises(ApiError):
            next(client.logs("j_x"))

    def test_events(self, api: Api, client: Client) -> None:
        job = client.submit(SPEC)
        api.moved(job.id, State.CANCELLED)
        followed = list(client.follow_events(job.id))
        assert [event.to_state for event in followed] == ["QUEUED", "CANCELLED"]
        assert followed == client.events(job.id)

    @pytest.mark.parametrize("size", [1, 3, 1000])
    def test_the_format(self, size: int) -> None:
        raw = b": hello\nretry: 1\n\nevent: log\ndata: a\ndata:\r\ndata:  b\nid: 7\n\n"
        raw += b"data: x\n\nid: 9\n\n"
        reader = EventReader()
        blocks = [raw[i : i + size] for i in range(0, len(raw), size)]
        assert [event for block in blocks for event in reader.feed(block)] == [
            StreamEvent("log", "a\n\n b", "7"),
            StreamEvent("message", "x", None),
        ]


class TestWait:
    def test_until_it_ends(self, api: Api, client: Client) -> None:
        job = client.submit(SPEC)
        seen: list[str] = []

        def finish() -> None:
            eventually(lambda: seen)
            api.moved(job.id, State.SUCCEEDED)

        helper = threading.Thread(target=finish)
        helper.start()
        done = client.wait(job.id, 20, poll_s=0.02, seen=lambda one: seen.append(one.status.state))
        helper.join()
        assert done.status.state == "SUCCEEDED"
        assert (seen[0], seen[-1]) == ("QUEUED", "SUCCEEDED")

    def test_over_a_database_that_is_away(
        self, api: Api, client: Client, connect: Connect, hasty: None
    ) -> None:
        job = client.submit(SPEC)
        api.moved(job.id, State.SUCCEEDED)
        done = client.get(job.id).model_dump_json()
        away = (503, {"Retry-After": "0"}, "")
        with scripted(*[away] * 7, (200, {}, done)) as (url, asked), connect(url, None) as other:
            assert other.wait(job.id, 20, poll_s=0.01).status.state == "SUCCEEDED"
            assert len(asked) == 8

    def test_not_for_what_is_not_there(self, client: Client) -> None:
        with pytest.raises(ApiError) as caught:
            client.wait("j_none", 20)
        assert caught.value.status == 404

    def test_not_for_ever(self, client: Client) -> None:
        job = client.submit(SPEC)
        with pytest.raises(TimeoutError, match=job.id):
            client.wait(job.id, 0.05, poll_s=0.01)


def test_both_clients_have_the_same_calls() -> None:
    def calls(kind: type) -> dict[str, list[inspect.Parameter]]:
        found = inspect.getmembers(kind, inspect.isfunction)
        public = {name: call for name, call in found if not name.startswith("_")}
        assert all(call.__doc__ for call in public.values())
        return {n: list(inspect.signature(call).parameters.values()) for n, call in public.items()}

    assert calls(Client) == calls(AsyncClient)
    assert {"submit", "wait", "logs", "close"} <= calls(Client).keys()


def test_it_needs_no_server_code(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(fastapi=None, uvicorn=None, torch=None)\n"
        "import stoplab_api.client"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
