"""How fast a log is followed: a real server, one client, events of 64 KiB chunks.

python benchmarks/log_follow.py [--mb 200]      prints {"name", "value_mb_s", "floor", "passed"}
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stoplab_platform.ids import new_job_id
from stoplab_platform.jobs.models import NewJob, Role
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.settings import Settings

FLOOR_MB_S = 50.0
SECRET = "stl_" + "x" * 40
LINE = b"2026-11-23 09:00:00,000 step 120/912  epoch 6  loss 0.4312  lr 1.00e-03  2300 images/s\n"
PATHS = (State.STARTING, State.RUNNING, State.SUCCEEDED)
ROUNDS = 3


def main() -> int:
    """Measure, print one JSON document, and exit with 1 below the floor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=200, help="size of the log (MB)")
    parser.add_argument("--json", action="store_true", help="as the others have it: always so")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="stoplab-bench-") as folder:
        settings = Settings(home=Path(folder))
        job_id = finished_job(settings, options.mb * 10**6)
        with server(settings) as port:
            times = [followed(port, job_id, options.mb * 10**6) for _ in range(ROUNDS)]
    value = options.mb / min(times)
    passed = value >= FLOOR_MB_S
    told = {"name": "log_follow", "value_mb_s": round(value, 1), "floor": FLOOR_MB_S}
    print(json.dumps({**told, "passed": passed, "mb": options.mb, "rounds": ROUNDS}))
    return 0 if passed else 1


def finished_job(settings: Settings, size: int) -> str:
    """A job that has ended and left a log of about so many bytes."""
    store = JobStore(settings.database)
    store.migrate()
    store.create_token("b", owner="b", project="default", role=Role.ADMIN, secret=SECRET)
    new = NewJob(new_job_id(), "pretrain", "bench", "default", "b", {}, "digest")
    job = store.submit(new).job
    for state in PATHS:
        job = store.move(job, state, actor="bench")
    store.close()
    log = settings.folders.job(job.id).driver_log
    log.parent.mkdir(parents=True)
    log.write_bytes(LINE * (size // len(LINE)))
    return job.id


@contextmanager
def server(settings: Settings) -> Iterator[int]:
    """The API in a process of its own; its port."""
    env = {**os.environ, "STOPLAB_HOME": str(settings.home), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "stoplab_api.app", "--port", "0"]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                yield int(found[1])
                break
        else:
            raise RuntimeError("the server did not start")
    finally:
        process.terminate()
        process.communicate(timeout=20)


def followed(port: int, job_id: str, size: int) -> float:
    """Seconds until the `end` event; the client only counts, so that the server is measured."""
    request = (
        f"GET /v1/jobs/{job_id}/logs?follow=true HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        f"Authorization: Bearer {SECRET}\r\nConnection: close\r\n\r\n"
    )
    room, tail, taken = bytearray(1 << 20), b"", 0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line:
        began = time.perf_counter()
        line.sendall(request.encode())
        while count := line.recv_into(room):
            taken += count
            tail = (tail + bytes(room[max(0, count - 200) : count]))[-200:]
        seconds = time.perf_counter() - began
    assert b"event: end" in tail, tail
    assert taken > 0.99 * size, f"{taken} of {size} bytes"
    return seconds


if __name__ == "__main__":
    sys.exit(main())
