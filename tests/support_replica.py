"""API replicas in processes of their own, whose jobs run small commands in place of trainings.

    python support_replica.py PORT COMMANDS

COMMANDS is JSON: the name of a job, or `*` for all others, to its command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from stoplab_api.app import create_app, default_runner, serve
from stoplab_platform import logs
from stoplab_platform.jobs.models import Role
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.runner.base import Launch, Observed, Runner
from stoplab_platform.settings import Settings
from support_store import wait_for

SECRET = "stl_" + "x" * 40
"""Opens the projects of every store that `make_token` was given."""
START_S = 90.0

ONCE = """
import fcntl, os, sys
os.chdir(os.path.join(os.environ["STOPLAB_HOME"], "jobs", os.environ["STOPLAB_JOB_ID"]))
attempt, alone = os.environ["STOPLAB_ATTEMPT"], open("alone", "w")
def note(word):
    with open("starts", "a") as file:
        file.write(attempt + " " + word + "\\n")
note("begins")
try:
    fcntl.flock(alone, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    note("overlaps")
"""
"""Notes in a file of its job that it began, and that another was at it at the same time."""


def once(then: str = "") -> list[str]:
    """The command of a job that notes its start; ``then`` is what it does next."""
    return [sys.executable, "-I", "-S", "-c", ONCE + then]


class SmallRuns:
    """A runner whose attempts run a command of the tests'."""

    def __init__(self, runner: Runner, commands: Mapping[str, Sequence[str]]) -> None:
        self._runner, self._commands = runner, commands
        self.tied_to_parent = runner.tied_to_parent

    def start(self, launch: Launch) -> None:
        command = self._commands.get(launch.metadata["name"], self._commands["*"])
        self._runner.start(replace(launch, entrypoint=[*launch.entrypoint, "--", *command]))

    def observe(self, submission_id: str) -> Observed:
        return self._runner.observe(submission_id)

    def stop(self, submission_id: str) -> None:
        self._runner.stop(submission_id)

    def forget(self, submission_id: str) -> None:
        self._runner.forget(submission_id)

    def alive(self) -> bool:
        return self._runner.alive()


@dataclass
class Replica:
    """One API server that can be killed and started again at the same address."""

    name: str
    port: int
    home: Path
    commands: Mapping[str, Sequence[str]]
    env: Mapping[str, str] = field(default_factory=dict)
    """The database, the rate limit, the cluster."""
    killed: int = 0
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """What it says, over all its lives."""
        return self.home / f"replica-{self.name}.log"

    def start(self) -> None:
        """Start it; does not wait."""
        assert self._process is None, f"{self.name} runs"
        command = [sys.executable, __file__, str(self.port), json.dumps(self.commands)]
        env = {**os.environ, "STOPLAB_HOME": str(self.home), "STOPLAB_RATE_PER_S": "0", **self.env}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, env=env, stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL, and gone."""
        assert self._process is not None, f"{self.name} does not run"
        assert self._process.poll() is None, self.log.read_text()[-3000:]
        self._process.kill()
        self._process.wait()
        self._process = None
        self.killed += 1

    def await_ready(self) -> None:
        """Until it answers."""
        wait_for(self._answers, f"replica {self.name}", START_S)

    def end(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()[-3000:]
        try:
            return httpx.get(f"{self.url}/livez", trust_env=False, timeout=5).is_success
        except httpx.TransportError:
            return False


@contextmanager
def running(*replicas: Replica) -> Iterator[None]:
    """Started replicas; none is left at the end."""
    try:
        for replica in replicas:
            replica.start()
        for replica in replicas:
            replica.await_ready()
        yield
    finally:
        for replica in replicas:
            replica.end()


def make_token(store: JobStore) -> None:
    """An administrator's token with a known secret."""
    store.create_token("ana", owner="ana", project="default", role=Role.ADMIN, secret=SECRET)


def main() -> None:
    """Serve until killed."""
    port, commands = int(sys.argv[1]), json.loads(sys.argv[2])
    settings = Settings()
    logs.set_up(settings)
    app = create_app(settings, runner=SmallRuns(default_runner(settings), commands))
    serve(app, host="127.0.0.1", port=port).run()


if __name__ == "__main__":
    main()
