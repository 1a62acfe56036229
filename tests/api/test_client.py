from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stoplab_api import transport
from stoplab_api.client import ApiError, Client, Unreachable
from stoplab_api.transport import StreamEvent, parse_events
from stoplab_platform.jobs.states import State
from stoplab_platform.ledger import Cell, Ledger
from stoplab_platform.paths import write_json
from stoplab_platform.specs import parse_spec
from support_api import COMPARE, SPEC, Api, eventually, running_api, secret


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def client(api: Api) -> Iterator[Client]:
    with Client(api.url, secret("ana")) as made:
        yield made


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "PAUSES_S", (0.01, 0.01))
    monkeypatch.setattr(transport, "RETRY_S", 0.02)


class Proxy:
    """Between client and server; cuts lines when told to.

    ``deaf``: how many answers from now on are lost after the server has given them.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lines: list[socket.socket] = []
        self.deaf = 0
        self.accepted = 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def cut(self) -> None:
        """End every line that is open."""
        for line in self._lines:
            _shut(line)

    def close(self) -> None:
        _shut(self._listener)
        self._listener.close()
        self.cut()
        self._thread.join()

    def _accept(self) -> None:
        pumps = []
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                break
            self.accepted += 1
            far = socket.create_connection(("127.0.0.1", self._to))
            self._lines += [near, far]
            for source, sink in ((near, far), (far, near)):
                pumps.append(
                    threading.Thread(target=self._pump, args=(source, sink, source is far))
                )
                pumps[-1].start()
        for pump in pumps:
            pump.join()
        for line in self._lines:
            line.close()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        try:
            while data := source.recv(65536):
                if answers and self.deaf:
                    self.deaf -= 1
                    break
                sink.sendall(data)
        except OSError:
            pass
        _shut(source)
        _shut(sink)


def _shut(line: socket.socket) -> None:
    try:
        line.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


@contextmanager
def proxied(api: Api) -> Iterator[Proxy]:
    proxy = Proxy(int(api.url.rpartition(":")[2]))
    try:
        yield proxy
    finally:
        proxy.close()


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

    def test_the_lab(self, api: Api, client: Client) -> None:
        assert client.me().owner == "ana"
        assert client.cluster().runner.alive
        assert client.schema("sweep")["title"] == "SweepSpec"
        with Client(api.url, secret("root")) as admin:
            token = admin.create_token("t", owner="kim", role="viewer", expires_in_days=1)
            with Client(api.url, token.secret) as kim:
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

    def test_nobody_there(self, hasty: None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        with Client(f"http://127.0.0.1:{port}", None) as client:
            with pytest.raises(Unreachable, match=str(port)):
                client.get("j_x")
            with pytest.raises(Unreachable):
                client.cancel("j_x")

    def test_somebody_else_there(self, api: Api) -> None:
        with Client(f"{api.url}/elsewhere", None) as client, pytest.raises(ApiError) as caught:
            client.me()
        assert caught.value.status == 404


class TestBrokenLines:
    def test_a_submit_whose_answer_was_lost_is_one_job(self, api: Api, hasty: None) -> None:
        with proxied(api) as proxy, Client(proxy.url, secret("ana")) as client:
            proxy.deaf = 1
            job = client.submit({**SPEC, "name": "lost-answer"})
            assert proxy.accepted == 2, "it was asked twice"
            assert [one.id for one in client.list(q="lost-answer").items] == [job.id]

    def test_what_may_not_be_repeated_is_not(self, api: Api, hasty: None) -> None:
        job = api.submitted()
        with proxied(api) as proxy, Client(proxy.url, secret("ana")) as client:
            proxy.deaf = 1
            with pytest.raises(Unreachable):
                client.pause(job["id"])
            assert proxy.accepted == 1
        assert api.store.get(job["id"]).state is State.PAUSED

    def test_a_log_is_followed_over_a_cut(self, api: Api, hasty: None) -> None:
        job_id = api.submitted()["id"]
        api.write_log(job_id, b"one\n")
        with proxied(api) as proxy, Client(proxy.url, secret("ana")) as client:
            pieces = client.logs(job_id, follow=True)
            assert next(pieces) == "one\n"
            proxy.cut()
            api.write_log(job_id, "two\u2028still two\n".encode())
            assert next(pieces) == "two\u2028still two\n"
            proxy.cut()
            api.moved(job_id, State.SUCCEEDED)
            assert list(pieces) == []
            assert proxy.accepted >= 3

    def test_patience_ends(self, api: Api, hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transport, "PATIENCE_S", 0.1)
        job_id = api.submitted()["id"]
        api.write_log(job_id, b"one\n")
        proxy = Proxy(int(api.url.rpartition(":")[2]))
        with Client(proxy.url, secret("ana")) as client:
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
        blocks = iter([raw[i : i + size] for i in range(0, len(raw), size)])
        assert list(parse_events(blocks)) == [
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

    def test_not_for_ever(self, client: Client) -> None:
        job = client.submit(SPEC)
        with pytest.raises(TimeoutError, match=job.id):
            client.wait(job.id, 0.05, poll_s=0.01)


def test_it_needs_no_server_code(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(fastapi=None, uvicorn=None, torch=None)\n"
        "import stoplab_api.client"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
