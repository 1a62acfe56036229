"""A real Ray head of a test module's own: free ports, a short temporary folder, a token."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from stoplab_platform.runner.ray_jobs import RayJobsRunner
from support_mlflow import free_port
from support_store import wait_for


@dataclass(frozen=True)
class RayHead:
    """Where it is."""

    dashboard: str
    gcs: str
    """What drivers and further raylets join."""
    token_path: Path
    process: psutil.Process

    def part(self, name: str) -> psutil.Process:
        """The head's process of this name, such as `raylet`."""
        (found,) = [p for p in self.process.children(recursive=True) if p.name() == name]
        return found

    @property
    def env(self) -> dict[str, str]:
        """What a process needs that joins it."""
        return {
            **os.environ,
            "RAY_ADDRESS": self.gcs,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_path),
        }

    def kill(self) -> list[str]:
        """Kill it with all below it, as a machine that goes down does; the names of all."""
        family = [self.process, *self.process.children(recursive=True)]
        names = [process.name() for process in family]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family[1:], timeout=30)
        return names


@contextmanager
def ray_head(
    num_cpus: int = 2,
    *,
    dashboard: int | None = None,
    token: Path | None = None,
    ip: str | None = None,
) -> Iterator[RayHead]:
    """Starts a head and ends it by the ids of its processes.

    One that shall follow another at the same place is given its dashboard's port and its token;
    one that others shall reach over a network of their own, its address there (``ip``).
    """
    # Names of sockets may have 107 bytes, so pytest's own folder is too deep.
    folder = Path(tempfile.mkdtemp(prefix="slr", dir="/tmp"))
    token = token or folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    dashboard, gcs = dashboard or free_port(), free_port()
    command = [
        Path(sys.executable).with_name("ray"), "start", "--head", "--block",
        f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={free_port()}",
        f"--dashboard-agent-grpc-port={free_port()}", f"--metrics-export-port={free_port()}",
        f"--runtime-env-agent-port={free_port()}", f"--ray-client-server-port={free_port()}",
        f"--num-cpus={num_cpus}", "--object-store-memory=100000000",
        f"--temp-dir={folder / 'ray'}", "--disable-usage-stats",
        *([f"--node-ip-address={ip}"] if ip else []),
    ]  # fmt: skip
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    with (folder / "head.log").open("wb") as log:
        head = subprocess.Popen(
            list(map(str, command)), env=env, stdout=log, stderr=log, start_new_session=True
        )
    runner = RayJobsRunner(f"http://127.0.0.1:{dashboard}", token)
    try:
        wait_for(runner.alive, "Ray's dashboard", 90)
        process = psutil.Process(head.pid)
        yield RayHead(f"http://127.0.0.1:{dashboard}", f"{ip or '127.0.0.1'}:{gcs}", token, process)
    finally:
        runner.close()
        tree = psutil.Process(head.pid).children(recursive=True)
        head.terminate()
        with suppress(subprocess.TimeoutExpired):  # after several jobs it may take its time
            head.wait(30)
        head.kill()
        head.wait(30)
        _, alive = psutil.wait_procs(tree, timeout=5)
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=5)
        shutil.rmtree(folder, ignore_errors=True)
