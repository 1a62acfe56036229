"""The engine below the store: connections, transactions, migrations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, func, select
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from stoplab_platform.errors import SettingsError, StoreUnavailable
from stoplab_platform.jobs.engines import make_engine, patient_engine

MIGRATION_LOCK = 7_150_418  # a number of our own for PostgreSQL's advisory locks
TRIES = 5
OURS = (IntegrityError, ProgrammingError, DataError, NotSupportedError)
"""Errors that say nothing of the database's health."""
GAVE_WAY = ("40P01", "40001")
"""PostgreSQL's codes of a deadlock's victim and of a transaction that came too late."""

P = ParamSpec("P")
T = TypeVar("T")


class GaveWay(StoreUnavailable):
    """Two transactions stood in each other's way, and this one was undone; again may do."""


def retried(transaction: Callable[P, T]) -> Callable[P, T]:
    """A method that is one transaction is run again where it had to give way."""

    @wraps(transaction)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        for _ in range(TRIES - 1):
            with suppress(GaveWay):
                return transaction(*args, **kwargs)
        return transaction(*args, **kwargs)

    return run


class Database:
    """One database; SQLite and PostgreSQL behave alike behind it."""

    def __init__(self, url: str) -> None:
        self._url = url
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
        with _translated(), self._unhurried() as connection:
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

    @contextmanager
    def _unhurried(self) -> Iterator[Connection]:
        """A transaction without the limits of everyday ones."""
        engine = patient_engine(self._url)
        try:
            with engine.execution_options(stoplab_write=True).begin() as connection:
                yield connection
        finally:
            engine.dispose()

    def close(self) -> None:
        """Give the connections back."""
        self._engine.dispose()


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


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except PoolTimeout as error:
        raise StoreUnavailable(f"the database does not answer: {error}") from error
    except DBAPIError as error:
        if isinstance(error, OURS) and not error.connection_invalidated:
            raise
        reason = " ".join(str(error.orig).split())
        kind = GaveWay if getattr(error.orig, "sqlstate", None) in GAVE_WAY else StoreUnavailable
        raise kind(f"the database does not answer: {reason}") from error
