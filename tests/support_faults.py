"""An HTTP proxy of the tests' own, which fails as it is told: 5xx, silence, cut answers."""

from __future__ import annotations

import http.client
import select
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HANGS_UP_S = 60.0  # by when a client that waits for a silent server has left
HOP = ("connection", "transfer-encoding", "content-length", "keep-alive")


class Faults(ThreadingHTTPServer):
    """Forwards to a port of this machine; each GET of a shard takes the next of `faults` first.

    A fault is a status to answer with, `silence`, or `cut`: half of the answer, then the end.
    """

    daemon_threads = True

    def __init__(self, target: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.faults: deque[int | str] = deque()
        self.asked: list[str] = []
        """Paths of the GETs, in order."""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def next_fault(self, path: str) -> int | str | None:
        """What happens to a GET of this path."""
        with self.lock:
            self.asked.append(path)
            is_shard = path.partition("?")[0].endswith((".tar", ".gz"))
            return self.faults.popleft() if is_shard and self.faults else None

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave are what it is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faults

    def do_GET(self) -> None:
        fault = self.server.next_fault(self.path)
        if isinstance(fault, int):
            self._answer(fault, {}, b"")
        elif fault == "silence":
            select.select([self.connection], [], [], HANGS_UP_S)
            self.close_connection = True
        else:
            self._forward(cut=fault == "cut")

    def do_HEAD(self) -> None:
        self._forward(cut=False)

    do_PUT = do_POST = do_DELETE = do_HEAD

    def log_message(self, *words: object) -> None:
        """Say nothing."""

    def _forward(self, *, cut: bool) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        far = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=HANGS_UP_S)
        far.request(self.command, self.path, self.rfile.read(size), dict(self.headers))
        answer = far.getresponse()
        body = answer.read()
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in HOP}
        if self.command == "HEAD":
            headers["Content-Length"] = answer.getheader("Content-Length") or "0"
        far.close()
        self._answer(answer.status, headers, body, cut=cut)

    def _answer(
        self, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.wfile.flush()
        if cut:
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def faulty(target: int) -> Iterator[Faults]:
    """A proxy that serves while the block lasts; it begins without faults."""
    server = Faults(target)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
