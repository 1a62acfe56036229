"""Migrations: up and down, with jobs in the tables, on every database."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, inspect, text
from sqlalchemy.engine.interfaces import ReflectedIndex

from stoplab_platform.errors import SettingsError
from stoplab_platform.jobs import database
from stoplab_platform.jobs.database import Database, alembic_config
from stoplab_platform.jobs.models import JobQuery
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.jobs.tables import Base
from support_store import new_job, open_store

VERSIONS = Path(database.__file__).parent / "migrations" / "versions"
REVISIONS = sorted(path.stem[:4] for path in VERSIONS.glob("[0-9]*.py"))
"""From the first to the newest."""


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    engine = create_engine(url)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def schema(url: str) -> dict[str, object]:
    """Columns, keys and indexes of every table, as the database tells them."""
    engine = create_engine(url)
    found = inspect(engine)
    tables = {
        name: [
            sorted(str(column) for column in found.get_columns(name)),
            sorted(map(index_of, found.get_indexes(name))),
            sorted(str(key) for key in found.get_foreign_keys(name)),
        ]
        for name in found.get_table_names()
        if name != "alembic_version"
    }
    engine.dispose()
    return {**tables}


def index_of(index: ReflectedIndex) -> str:
    """Its name, columns and condition."""
    options = {name: str(value) for name, value in index.get("dialect_options", {}).items()}
    return str({**index, "dialect_options": options})


def difference(url: str) -> list[object]:
    """Between the database and the code's tables."""
    with connected(url) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        return list(compare_metadata(context, Base.metadata))


def test_the_tables_are_what_the_code_says(url: str) -> None:
    assert difference(url) == []


def test_up_one_by_one_and_down_again(empty_url: str) -> None:
    schemas = [schema(empty_url)]
    for revision in REVISIONS:
        with connected(empty_url) as connection:
            command.upgrade(alembic_config(connection), revision)
        schemas.append(schema(empty_url))
    assert difference(empty_url) == []
    assert schemas[0] == {}
    lab = Database(empty_url)
    for revision, before in zip(["base", *REVISIONS][-2::-1], schemas[-2::-1], strict=True):
        lab.migrate(revision)
        assert schema(empty_url) == before, revision
    lab.migrate()
    assert schema(empty_url) == schemas[-1]
    lab.close()


@pytest.mark.parametrize("revision", REVISIONS)
def test_jobs_go_down_and_up_with_their_tables(store: JobStore, url: str, revision: str) -> None:
    first = store.submit(new_job(name="Erste@1", labels={"team": "vision"})).job
    heir = store.submit(new_job(retry_of=first.id)).job
    first = store.move(first, State.STARTING, actor="x", attempt=1)
    events = store.events(first.id)
    lab = Database(url)
    lab.migrate(revision)
    lab.migrate()
    lab.close()
    assert store.get(first.id) == first
    assert store.get(heir.id) == heir
    assert store.events(first.id) == events
    for query in (JobQuery(labels=(("team", "vision"),)), JobQuery(prefix="erste")):
        for project in (None, "default"):
            found = store.list(JobQuery(**{**vars(query), "project": project}))
            assert found.items == (first,)
    assert [job.id for job in store.unfinished()] == [first.id, heir.id]


def test_replicas_migrate_at_once(empty_url: str) -> None:
    def migrate(_: int) -> None:
        with open_store(empty_url) as store:
            store.ping()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(migrate, range(4)))
    assert difference(empty_url) == []


def test_a_new_file_that_somebody_holds_is_waited_for(tmp_path: Path) -> None:
    """SQLite itself would refuse at once: its busy timeout does not hold for the switch to WAL."""
    path = tmp_path / "new.db"
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("CREATE TABLE held (x)")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError), closing(sqlite3.connect(path)) as other:
        other.execute("PRAGMA journal_mode=WAL")
    release = threading.Timer(0.3, holder.close)
    release.start()
    with open_store(f"sqlite:///{path}") as store:
        store.ping()
    release.join()


def test_a_newer_database_is_refused(store: JobStore, url: str) -> None:
    with connected(url) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    before = schema(url)
    with pytest.raises(SettingsError, match="9999") as caught:
        store.migrate()
    assert REVISIONS[-1] in str(caught.value)
    assert schema(url) == before
