"""The engine below the store: connections, transactions, migrations."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from stoplab_platform.errors import SettingsError, StoreUnavailable

BUSY_TIMEOUT_S = 10
MIGRATION_LOCK = 7_150_418  # a number of our own for PostgreSQL's advisory locks


class Database:
    """One database; SQLite and PostgreSQL behave alike behind it."""

    def __init__(self, url: str) -> None:
        self._engine = make_engine(url)
        # The same pool; SQLite takes the write lock when such a transaction begins.
        self._writer = self._engine.execution_options(stoplab_write=True)

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A transaction that only reads; StoreUnavailable when the database is away."""
        with _translated(), Session(self._engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that commits at the end of the block, or not at all."""
        with _translated(), Session(self._writer) as session, session.begin():
            yield session

    def migrate(self, revision: str = "head") -> None:
        """Bring the tables to ``revision``; SettingsError when they are newer than this code."""
        with _translated(), self._writer.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            config = alembic_config(connection)
            try:
                if revision == "head":
                    command.upgrade(config, revision)
                else:
                    command.downgrade(config, revision)
            except CommandError as error:
                known = ScriptDirectory.from_config(config).get_current_head()
                raise SettingsError(
                    f"the database is not one that this version of stoplab (schema {known}) "
                    f"can use: {error}"
                ) from error

    def schema(self) -> tuple[str | None, str | None]:
        """Revision of the tables (None: there are none), and the one this code knows."""
        with _translated(), self._engine.connect() as connection:
            script = ScriptDirectory.from_config(alembic_config(connection))
            found = MigrationContext.configure(connection).get_current_revision()
            return found, script.get_current_head()

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()


def make_engine(url: str) -> Engine:
    """An engine; SQLite in WAL with a busy timeout, foreign keys on."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_engine(parsed, pool_pre_ping=True)
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"timeout": BUSY_TIMEOUT_S})
    event.listen(engine, "connect", _sqlite_connect)
    event.listen(engine, "begin", _sqlite_begin)
    return engine


def alembic_config(connection: Connection) -> Config:
    """Alembic's settings for the migrations beside this file, on an open connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def clock(session: Session) -> float:
    """The database's own clock, seconds since 1970."""
    if session.get_bind().dialect.name == "sqlite":
        now = select((func.julianday("now") - 2440587.5) * 86400.0)
    else:
        now = select(func.extract("epoch", func.clock_timestamp()))
    return float(session.scalars(now).one())


def _sqlite_connect(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours, below
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("stoplab_write")
    # A read that turns into a write fails at once where another writer came between.
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        reason = getattr(error, "orig", None) or error
        raise StoreUnavailable(f"the database does not answer: {reason}") from error
