"""Which database an address means, and how it is opened."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from stoplab_platform.errors import SettingsError

BUSY_TIMEOUT_S = 10
SWITCH_S = 0.02  # between two tries to switch a new file to WAL
FORMS = "sqlite:////absolute/path.db or postgresql://user:password@host:5432/database"


def make_engine(url: str) -> Engine:
    """The store's engine; SettingsError for an address of no database that stoplab knows."""
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed)
    return _postgres().limited_engine(parsed)  # type: ignore[no-any-return]


def patient_engine(url: str) -> Engine:
    """An engine for migrations, without the limits of everyday work."""
    parsed = _parsed(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed)
    return _postgres().patient_engine(parsed)  # type: ignore[no-any-return]


def copy_sqlite(source: Path, target: Path) -> None:
    """A copy of an SQLite file as it is at one moment, whoever writes to it meanwhile."""
    with (
        closing(sqlite3.connect(source, timeout=BUSY_TIMEOUT_S)) as original,
        closing(sqlite3.connect(target)) as copy,
    ):
        original.backup(copy)


def _parsed(url: str) -> URL:
    """The address, for psycopg 3; no error shows it, for a password may be in it."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise SettingsError(f"STOPLAB_DATABASE_URL is no URL; it is {FORMS}") from None
    if parsed.drivername in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise SettingsError(
            f"STOPLAB_DATABASE_URL begins with {parsed.drivername}://; it is {FORMS}"
        )
    return parsed


def _postgres() -> ModuleType:
    # Only here: its driver comes with stoplab[api], and trainers need neither.
    try:
        from stoplab_platform.jobs import postgres
    except ImportError as error:
        raise SettingsError(
            f"STOPLAB_DATABASE_URL names PostgreSQL, whose driver is missing ({error}): "
            "pip install 'stoplab[api]'"
        ) from error
    return postgres


def _sqlite(url: URL) -> Engine:
    """WAL with a busy timeout, foreign keys on."""
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _sqlite_connect)
    event.listen(engine, "begin", _sqlite_begin)
    return engine


def _sqlite_connect(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours, below
    _write_ahead(connection)
    for pragma in ("synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _write_ahead(connection: sqlite3.Connection) -> None:
    """WAL. SQLite's own busy timeout does not hold for this switch, which a new file needs once."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(SWITCH_S)
        else:
            return


def _sqlite_begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("stoplab_write")
    # A read that turns into a write fails at once where another writer came between.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
