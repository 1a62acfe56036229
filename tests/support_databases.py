"""Fixtures: databases of every kind that the store runs on, each of a test's own, and its jobs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoplab_platform.jobs.database import Database
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.service import Jobs
from stoplab_platform.settings import Settings
from support_postgres import Postgres, running_postgres
from support_sessions import watch_sessions
from support_store import open_store

ENGINES = ("sqlite", "postgres")
TEMPLATE = "stoplab_template"


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """One server for all tests that leave it alive; `--no-postgres` skips them."""
    if request.config.getoption("--no-postgres"):
        pytest.skip("--no-postgres")
    with running_postgres(durable=False) as server:
        server.execute(f"CREATE DATABASE {TEMPLATE}")
        _migrate(server.url(TEMPLATE))
        yield server


@pytest.fixture(params=ENGINES)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database without tables, of every kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'store.db'}"
    else:
        with request.getfixturevalue("postgres").database() as url:
            yield url


@pytest.fixture(params=ENGINES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """URL of a database with the store's tables, of every kind."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("sqlite_tables"), tmp_path / "store.db")
        yield f"sqlite:///{tmp_path / 'store.db'}"
    else:
        with request.getfixturevalue("postgres").database(TEMPLATE) as url:
            yield url


@pytest.fixture
def store(url: str) -> Iterator[JobStore]:
    """A store of every kind."""
    with open_store(url) as store:
        yield store


@pytest.fixture
def jobs(store: JobStore, settings: Settings) -> Jobs:
    """What may be asked of the jobs in it, under the settings of the test's module."""
    return Jobs(store, settings)


@pytest.fixture
def watched_sessions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The database never waits for a runner, the tracker, or anything else that is far away."""
    caught = watch_sessions(monkeypatch)
    yield
    assert caught == []


@pytest.fixture(scope="session")
def sqlite_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store in one file."""
    path = tmp_path_factory.mktemp("sqlite") / "store.db"
    _migrate(f"sqlite:///{path}")
    return path


def _migrate(url: str) -> None:
    database = Database(url)
    database.migrate()
    database.close()
