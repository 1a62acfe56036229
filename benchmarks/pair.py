"""Our API and the bare one of `plain_api`, each a process of its own, and a client for both."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from stoplab_platform.jobs.models import Role
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.settings import Settings

SECRET = "stl_" + "x" * 40
SPEC = {
    "kind": "pretrain",
    "name": "bench",
    "positions": {"kind": "stochastic", "noise_std": 0.25},
    "model": {
        "encoder": "custom", "width": 48, "depth": 3, "heads": 3, "patch_size": 2,
        "predictor": {"width": 24, "depth": 2}, "init": "small",
    },
    "masking": {"kind": "multiblock", "min_keep": 4},
    "data": {"train": "digits", "image_size": 16},
    "optim": {"epochs": 20, "batch_size": 64, "lr": 0.001},
}  # fmt: skip
BODY = json.dumps({"spec": SPEC, "priority": 0}).encode()


@dataclass(frozen=True)
class Client:
    """One connection that stays open; as little work a request as can be."""

    line: HTTPConnection

    def ask(self, method: str, path: str, body: bytes | None = None) -> Any:
        """The answer's JSON; AssertionError for a refusal."""
        headers = {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/json"}
        self.line.request(method, path, body, headers)
        answer = self.line.getresponse()
        content = answer.read()
        assert answer.status < 300, content
        return json.loads(content)

    def hang_up(self) -> None:
        """The next question opens the line anew: an idle one is closed by the server in time."""
        self.line.close()


@dataclass(frozen=True)
class Pair:
    """Both, and the store behind ours."""

    ours: Client
    plain: Client
    store: JobStore


@contextmanager
def pair(folder: Path) -> Iterator[Pair]:
    """Start both, each on an empty database in ``folder``. Jobs of ours are queued, not started."""
    settings = Settings(home=folder / "home")
    store = JobStore(settings.database)
    store.migrate()
    store.create_token("b", owner="b", project="default", role=Role.ADMIN, secret=SECRET)
    assert store.lease("admission", "benchmark", 1e6)
    env = {"STOPLAB_HOME": str(settings.home), "STOPLAB_RATE_PER_S": "0"}
    ours = [sys.executable, "-m", "stoplab_api.app", "--port", "0"]
    plain = [sys.executable, str(Path(__file__).with_name("plain_api.py")), f"{folder}/plain.db"]
    with ExitStack() as opened:
        ports = [
            opened.enter_context(running(command, {**os.environ, **env}))
            for command in (ours, plain)
        ]
        lines = [HTTPConnection("127.0.0.1", port, timeout=60) for port in ports]
        yield Pair(Client(lines[0]), Client(lines[1]), store)
    store.close()


@contextmanager
def running(command: list[str], env: dict[str, str]) -> Iterator[int]:
    """A server that tells its port in its output."""
    process = subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    with ExitStack() as opened:
        opened.callback(process.wait, 20)
        opened.callback(process.terminate)
        for line in process.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                opened.enter_context(_drained(process))
                yield int(found[1])
                return
        raise RuntimeError(f"{command} did not start")


@contextmanager
def _drained(process: subprocess.Popen[str]) -> Iterator[None]:
    """Something reads the output, or a full pipe would stop the server."""
    assert process.stdout is not None
    drain = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        drain.wait(20)
