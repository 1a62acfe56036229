"""An HTTP proxy of the tests' own, which fails as it is told: 5xx, silence, cuts, slowness."""

from __future__ import annotations

import http.client
import select
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HANGS_UP_S = 60.0  # by when a client that waits for a silent server has left
SLOW_S = 0.3  # that a slow answer takes
READ, WRITTEN = (".tar", ".gz", ".pt", "manifest.json"), (".pt", "manifest.json")
HOP = ("connection", "transfer-encoding", "content-length", "keep-alive")


class Faults(ThreadingHTTPServer):
    """Forwards to a port of this machine; each GET of a shard or a part of a checkpoint takes the
    next of `faults` first, each PUT of the latter the next of `write_faults`.

    A fault is a status to answer with, `silence`, `slow`, or `cut`: half of the answer, or of what
    is written, then the end.
    """

    daemon_threads = True

    def __init__(self, target: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.faults: deque[int | str] = deque()
        self.asked: list[str] = []
        """Paths of the GETs, in order."""
        self.head_faults: deque[int | str] = deque()
        """What the next HEADs take."""
        self.write_faults: deque[int | str] = deque()
        self.may = threading.Event()
        """Unless it is set, writes wait for it."""
        self.may.set()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def next_fault(self, path: str) -> int | str | None:
        """What happens to a GET of this path."""
        with self.lock:
            self.asked.append(path)
            is_part = path.partition("?")[0].endswith(READ)
            return self.faults.popleft() if is_part and self.faults else None

    def next_write_fault(self, path: str) -> int | str | None:
        """What happens to a PUT of this path."""
        self.may.wait(HANGS_UP_S)
        with self.lock:
            is_part = path.partition("?")[0].endswith(WRITTEN)
            return self.write_faults.popleft() if is_part and self.write_faults else None

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave are what it is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faults

    def do_GET(self) -> None:
        self._serve(self.server.next_fault(self.path))

    def do_PUT(self) -> None:
        fault = self.server.next_write_fault(self.path)
        size = int(self.headers.get("Content-Length") or 0)
        if fault == "cut":
            self.rfile.read(size // 2)
            self._hang_up()
        elif fault in (None, "slow"):
            self._serve(fault)
        else:
            self.rfile.read(size)
            self._serve(fault)

    def _serve(self, fault: int | str | None) -> None:
        if isinstance(fault, int):
            self._answer(fault, {}, b"")
            return
        if fault == "silence":
            select.select([self.connection], [], [], HANGS_UP_S)
            self.close_connection = True
            return
        if fault == "slow":
            select.select([], [], [], SLOW_S)
        self._forward(cut=fault == "cut")

    def do_HEAD(self) -> None:
        self._serve(self.server.head_faults.popleft() if self.server.head_faults else None)

    def do_POST(self) -> None:
        self._forward(cut=False)

    do_DELETE = do_POST

    def log_message(self, *words: object) -> None:
        """Say nothing."""

    def _forward(self, *, cut: bool) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        sent = self.rfile.read(size)
        far = http.client.HTTPConnection("127.0.0.1", self.server.target, timeout=HANGS_UP_S)
        with closing(far):
            far.request(self.command, self.path, sent, dict(self.headers))
            answer = far.getresponse()
            body = answer.read()
            headers = {k: v for k, v in answer.getheaders() if k.lower() not in HOP}
            if self.command == "HEAD":
                headers["Content-Length"] = answer.getheader("Content-Length") or "0"
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
            self._hang_up()

    def _hang_up(self) -> None:
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
