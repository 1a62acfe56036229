"""An address that hears of jobs, for tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


@dataclass
class Heard:
    """What an address was told, and what it answers."""

    answers: list[int] = field(default_factory=list)
    """Statuses of the next answers; then 204."""
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    taken: list[dict[str, Any]] = field(default_factory=list)

    def take(self, headers: dict[str, str], body: bytes) -> int:
        self.requests.append((headers, body))
        status = self.answers.pop(0) if self.answers else 204
        if status == 204:
            self.taken.append({**json.loads(body), "id": headers["webhook-id"]})
        return status


@contextmanager
def listening(heard: Heard, port: int = 0) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.send_response(heard.take(headers, body))
            self.end_headers()

        def log_message(self, format: str, *words: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
