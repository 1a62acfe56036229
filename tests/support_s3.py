"""A real S3 server on this machine, and plain HTTP ones."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import s3fs
from moto.server import ThreadedMotoServer

BUCKET = "shards"
OPTIONS: dict[str, Any] = {"key": "user", "secret": "password"}


@contextmanager
def s3_server() -> Iterator[int]:
    """Its port, while the block lasts; it holds one empty bucket."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        # What earlier servers of this process held is still there.
        httpx.post(f"http://127.0.0.1:{port}/moto-api/reset").raise_for_status()
        bucket(port).mkdir(BUCKET)
        yield port
    finally:
        server.stop()


def bucket(port: int) -> s3fs.S3FileSystem:
    """The server's files."""
    return s3fs.S3FileSystem(
        **OPTIONS, endpoint_url=f"http://127.0.0.1:{port}", use_listings_cache=False
    )


@contextmanager
def http_server(folder: Path) -> Iterator[int]:
    """The port of a server of a folder's files, which knows no ranges."""
    handler = partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """Say nothing."""
