"""Large logs, long lines and clients that do not read, against a server in its own process."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoplab_api.client import Client
from stoplab_platform.jobs.models import Job
from stoplab_platform.jobs.states import State
from support_server import SECRET, ApiProcess, Watched, api_process

pytestmark = pytest.mark.slow

BLOCK = b"".join(b"step %06d of 912: loss 0.43, 2300 images/s\n" % i for i in range(20_000))
LONG_LINE = b"x" * 5_000_000 + b"\n"
SIZE = 200_000_000
MOST_GROWTH = 48 * 2**20
STALLED = 60  # more than the server has threads


@pytest.fixture
def api(home: Path) -> Iterator[ApiProcess]:
    with api_process(home) as running:
        with Client(running.url, SECRET) as client:
            client.me()  # its first answer loads what all others use
        yield running


def written(api: ApiProcess, job: Job) -> str:
    """Writes the log of a job as fast as the disk takes it, ends the job; the log's sha256."""
    digest = hashlib.sha256()
    path = api.folder(job).driver_log
    path.parent.mkdir(parents=True)
    with path.open("wb", buffering=0) as file:
        for part in (*[BLOCK] * (SIZE // 2 // len(BLOCK)), LONG_LINE, *[BLOCK] * (
            SIZE // 2 // len(BLOCK)
        )):  # fmt: skip
            file.write(part)
            digest.update(part)
    api.store.move(job, State.SUCCEEDED, actor="test")
    return digest.hexdigest()


def followed(api: ApiProcess, job: Job) -> str:
    """The sha256 of what a client gets that follows to the end."""
    digest = hashlib.sha256()
    with Client(api.url, SECRET) as client:
        for piece in client.logs(job.id, follow=True):
            digest.update(piece.encode())
    return digest.hexdigest()


def stalled(api: ApiProcess, job: Job) -> socket.socket:
    """A client that asks for the stream and never reads."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.connect(("127.0.0.1", api.port))
    head = f"GET /v1/jobs/{job.id}/logs?follow=true HTTP/1.1\r\nHost: x\r\n"
    line.sendall(f"{head}Authorization: Bearer {SECRET}\r\n\r\n".encode())
    return line


def test_a_large_log_is_followed_while_it_is_written(api: ApiProcess) -> None:
    """200 MB with a line of 5 MB in the middle: every byte, and no growth."""
    job, wrote = api.running_job(), list[str]()
    writer = threading.Thread(target=lambda: wrote.append(written(api, job)))
    with Watched(api.process) as memory:
        writer.start()
        got = followed(api, job)
        writer.join()
    assert got == wrote[0]
    assert memory.growth < MOST_GROWTH, f"{memory.growth / 2**20:.0f} MiB"


def test_clients_that_do_not_read_cost_nobody_else(api: ApiProcess) -> None:
    job = api.running_job()
    wrote = written(api, job)
    lines = [stalled(api, job) for _ in range(STALLED)]
    try:
        with Watched(api.process) as memory, Client(api.url, SECRET) as client:
            assert followed(api, job) == wrote, "another follower gets everything"
            slowest = 0.0
            for _ in range(20):
                began = time.monotonic()
                assert client.get(job.id).status.state == "SUCCEEDED"
                slowest = max(slowest, time.monotonic() - began)
    finally:
        for line in lines:
            line.close()
    assert slowest < 2.0
    assert memory.growth < MOST_GROWTH, f"{memory.growth / 2**20:.0f} MiB"
