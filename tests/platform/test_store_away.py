"""PostgreSQL that stops, crashes, hangs, or is in one's own way."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from stoplab_platform.errors import SettingsError, StoreUnavailable
from stoplab_platform.jobs import postgres as limits
from stoplab_platform.jobs.database import TRIES, Database, GaveWay, retried
from stoplab_platform.jobs.models import IdempotencyRecord, Job, JobQuery
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.store import JobStore
from support_postgres import Postgres, running_postgres
from support_store import new_job, open_store

KEY = IdempotencyRecord("key", "digest")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """A server that tests may stop, as long as they start it again."""
    if request.config.getoption("--no-postgres"):
        pytest.skip("--no-postgres")
    with running_postgres() as server:
        yield server


@pytest.fixture
def url(server: Postgres) -> Iterator[str]:
    with server.database() as url:
        yield url


@pytest.fixture
def store(url: str) -> Iterator[JobStore]:
    with open_store(url) as store:
        yield store


@pytest.fixture
def job(store: JobStore) -> Job:
    return store.submit(new_job(), idempotency=KEY).job


def calls(store: JobStore, job: Job) -> list[Callable[[], Any]]:
    """One of each kind."""
    return [
        lambda: store.get(job.id),
        lambda: store.list(JobQuery()),
        store.unfinished,
        store.ping,
        lambda: store.submit(new_job()),
        lambda: store.move(job, State.CANCELLED, actor="x"),
        lambda: store.lease("admission", "x", 60),
        lambda: store.principal("secret"),
        store.migrate,
    ]


class TestAway:
    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
    def test_every_call_says_so_until_it_is_back(
        self, server: Postgres, store: JobStore, job: Job, how: signal.Signals
    ) -> None:
        with ThreadPoolExecutor(4) as pool:  # some connections to lose
            list(pool.map(store.get, [job.id] * 8))
        server.stop(how)
        try:
            for call in calls(store, job):
                with pytest.raises(StoreUnavailable, match="does not answer"):
                    call()
        finally:
            server.start()
        assert store.get(job.id) == job
        assert store.submit(new_job(), idempotency=KEY).replayed
        assert store.move(job, State.CANCELLED, actor="x").state is State.CANCELLED

    def test_in_the_middle_of_a_transaction(self, server: Postgres, url: str, job: Job) -> None:
        database = Database(url)

        def write(*after: str) -> None:
            with database.writing() as session:
                session.execute(text("UPDATE jobs SET version = 99"))
                terminate(server, url)
                for statement in after:
                    session.execute(text(statement))

        with pytest.raises(StoreUnavailable, match="terminat"):
            write("UPDATE jobs SET version = 100")
        with pytest.raises(StoreUnavailable):
            write()  # the commit is what meets it
        with database.reading() as session:
            assert session.scalars(text("SELECT version FROM jobs")).all() == [1]
        database.close()

    def test_connections_that_died_in_the_pool_are_replaced(
        self, server: Postgres, url: str, store: JobStore, job: Job
    ) -> None:
        for _ in range(3):
            terminate(server, url)
            assert store.get(job.id) == job


class TestSlow:
    def test_a_server_that_hangs(
        self, server: Postgres, url: str, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "ANSWER_TIMEOUT_S", 1)
        monkeypatch.setattr(limits, "CONNECT_TIMEOUT_S", 2)
        with open_store(url) as store:
            store.get(job.id)
            server.hang()
            try:
                for _ in range(2):  # by an open connection, then by a new one
                    started = time.monotonic()
                    with pytest.raises(StoreUnavailable):
                        store.get(job.id)
                    assert time.monotonic() - started < 15
            finally:
                server.wake()
            assert store.get(job.id) == job

    def test_a_lock_that_somebody_keeps(
        self, url: str, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "OPTIONS", "-c lock_timeout=200ms")
        engine = create_engine(url)
        with open_store(url) as store:
            with engine.begin() as other:
                other.execute(text("UPDATE jobs SET priority = 1"))
                with pytest.raises(StoreUnavailable, match="lock timeout"):
                    store.move(job, State.CANCELLED, actor="x")
            assert store.get(job.id).state is State.QUEUED
            store.move(job, State.CANCELLED, actor="x")
        engine.dispose()

    def test_a_statement_without_end(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "OPTIONS", "-c statement_timeout=200ms")
        database = Database(url)
        with pytest.raises(StoreUnavailable, match="statement timeout"):
            with database.reading() as session:
                session.execute(text("SELECT pg_sleep(60)"))
        database.close()

    def test_a_replica_that_sleeps_in_a_transaction_keeps_no_lock(
        self, url: str, store: JobStore, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "OPTIONS", "-c idle_in_transaction_session_timeout=200ms")
        database = Database(url)

        def sleepy() -> None:
            with database.writing() as session:
                session.execute(text("UPDATE jobs SET version = 99"))
                store.move(job, State.CANCELLED, actor="x")  # waits for the lock
                session.execute(text("SELECT 1"))

        with pytest.raises(StoreUnavailable):
            sleepy()
        assert store.get(job.id).version == 2
        database.close()

    def test_all_limits_are_set(self, url: str) -> None:
        database = Database(url)
        with database.reading() as session:
            names = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
            found = [session.scalars(text(f"SHOW {name}")).one() for name in names]
        database.close()
        assert found == ["10s", "20s", "30s"]
        own = Database(f"{url}?options=-c%20statement_timeout%3D7s")
        with own.reading() as session:
            assert session.scalars(text("SHOW statement_timeout")).one() == "7s"
        own.close()


class TestInEachOthersWay:
    def test_of_a_deadlock_both_come_through(self, url: str, store: JobStore) -> None:
        ids = [store.submit(new_job()).job.id for _ in range(2)]
        database, barrier, tries = Database(url), Barrier(2), []

        @retried
        def crossing(first: str, second: str) -> None:
            tries.append(first)
            with database.writing() as session:
                add_one(session, first)
                if len(tries) <= 2:
                    barrier.wait(10)
                add_one(session, second)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(crossing, ids, ids[::-1]))
        assert len(tries) >= 3  # one was the victim, and perhaps once more
        assert [store.get(job_id).priority for job_id in ids] == [2, 2]
        database.close()

    def test_but_not_for_ever(self) -> None:
        tries = []

        @retried
        def never() -> None:
            tries.append(1)
            raise GaveWay("deadlock detected")

        with pytest.raises(StoreUnavailable):
            never()
        assert len(tries) == TRIES

    def test_a_serverwide_isolation_changes_nothing(self, server: Postgres, url: str) -> None:
        name = url.rpartition("/")[2]
        server.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = serializable")
        database = Database(url)
        with database.reading() as session:
            assert session.scalars(text("SHOW transaction_isolation")).one() == "read committed"
        database.close()


class TestAddresses:
    @pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
    def test_schemes(self, url: str, scheme: str) -> None:
        with open_store(f"{scheme}://{url.partition('://')[2]}") as store:
            store.ping()

    @pytest.mark.parametrize(
        ("address", "named"),
        [
            ("mysql://ana:hidden@db/stoplab", "mysql://"),
            ("postgresql+psycopg2://ana:hidden@db/stoplab", "psycopg2"),
            ("ana:hidden@db", "no URL"),
            ("postgresql://ana:hidden@db:port/stoplab", "no URL"),
        ],
    )
    def test_others_are_refused(self, address: str, named: str) -> None:
        with pytest.raises(SettingsError, match="STOPLAB_DATABASE_URL") as caught:
            JobStore(address)
        assert named in str(caught.value)
        assert "hidden" not in str(caught.value)


def terminate(server: Postgres, url: str) -> None:
    """End all sessions of a database, as an administrator does."""
    name = url.rpartition("/")[2]
    server.execute(
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    )


def add_one(session: Any, job_id: str) -> None:
    session.execute(text("UPDATE jobs SET priority = priority + 1 WHERE id = :id"), {"id": job_id})
