"""What lists cost: counted, not timed, so that a busy machine changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, insert, text

from stoplab_platform.jobs import listing
from stoplab_platform.jobs.models import JobQuery
from stoplab_platform.jobs.rows import new_row
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.jobs.tables import JobRow, LabelRow
from support_databases import ENGINES
from support_store import new_job, open_store, run_spec

SPEC = run_spec()
FEW, MANY = 300, 3_000
"""Jobs of a small and of a large lab."""

QUERIES: dict[str, dict[str, Any]] = {
    "all": {},
    "page": {"cursor": "j_00100"},
    "state": {"states": (State.SUCCEEDED,)},
    "rare state": {"states": (State.FAILED,)},
    "states": {"states": (State.FAILED, State.SUCCEEDED)},
    "rare kind": {"kinds": ("sweep",)},
    "label": {"labels": (("team", "vision"),)},
    "rare label": {"labels": (("paper", "yes"),)},
    "name": {"prefix": "Run-"},
    "oldest by name": {"prefix": "run-0000"},
    "one name": {"prefix": "run-00077"},
    "id": {"prefix": "j_000"},
    "no such name": {"prefix": "walk"},
    "small project": {"project": "small"},
}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many names are sorted: in proportion to the tests' labs."""
    monkeypatch.setattr(listing, "FEW", 100)


@dataclass
class Labs:
    """Two stores that differ in size alone."""

    small: JobStore
    large: JobStore

    def costs(self, call: Callable[[JobStore], Any]) -> tuple[int, int]:
        """The database's work for a call in each, the large one first."""
        return measured(self.large, call), measured(self.small, call)


@pytest.fixture(scope="module", params=ENGINES)
def labs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Labs]:
    """On every database."""
    with ExitStack() as opened:
        stores = []
        for size in (FEW, MANY):
            if request.param == "sqlite":
                url = f"sqlite:///{tmp_path_factory.mktemp('lab')}/store.db"
            else:
                server = request.getfixturevalue("postgres")
                url = opened.enter_context(server.database())
            stores.append(opened.enter_context(open_store(url)))
            fill(url, size)
        yield Labs(*stores)


@pytest.mark.parametrize("name", QUERIES)
def test_a_list_of_many_costs_as_a_list_of_few(labs: Labs, name: str) -> None:
    query = JobQuery(**{"project": "big", **QUERIES[name]})
    large, small = labs.costs(lambda store: store.list(query))
    assert large <= 2 * small


@pytest.mark.parametrize("name", ["unfinished", "unsettled"])
def test_so_does_the_reconcilers_look(labs: Labs, name: str) -> None:
    large, small = labs.costs(lambda store: getattr(store, name)())
    assert large <= 2 * small


def test_so_does_a_deletion(labs: Labs) -> None:
    """It looks for jobs that go on from the deleted one."""
    ids = iter(["j_00021", "j_00022"] * 2)
    large, small = labs.costs(lambda store: store.hide(store.get(next(ids)), actor="ana"))
    assert large <= 2 * small


@pytest.mark.parametrize("name", QUERIES)
def test_the_pages_of_a_list_hold_each_job_once(labs: Labs, name: str) -> None:
    query = JobQuery(**{"project": "big", **QUERIES[name]})
    whole = [job.id for job in labs.small.list(replace(query, limit=FEW)).items]
    seen: list[str] = []
    page = labs.small.list(replace(query, limit=7))
    while page.next_cursor is not None:
        seen += [job.id for job in page.items]
        page = labs.small.list(replace(query, limit=7, cursor=page.next_cursor))
    seen += [job.id for job in page.items]
    assert seen == sorted(whole, reverse=True)
    assert len(set(seen)) == len(seen)
    assert bool(seen) is (name != "no such name")


def fill(url: str, size: int) -> None:
    """Jobs of the project `big`, as many of `other`, and 20 of `small`."""
    counts = {"big": size, "other": size, "small": 20}
    jobs = [job(project, number) for project, count in counts.items() for number in range(count)]
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection, connection.begin():
        connection.execute(insert(JobRow.__table__), jobs)
        connection.execute(insert(LabelRow.__table__), list(labels(jobs)))
    if engine.dialect.name == "postgresql":  # as its housekeeping leaves them
        with engine.connect() as connection:
            connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()


def job(project: str, number: int) -> dict[str, Any]:
    """One in ten is of a rare sort in the oldest hundred, none is later."""
    rare = number < 100 and number % 10 == 3
    initial = "" if project == "big" else project[0]
    name = f"Run-{number:05d}"
    row = new_row(new_job(SPEC, id=f"j_{number:05d}{initial}", name=name, project=project))
    columns = JobRow.__table__.columns.keys()
    fixed = {
        "kind": "sweep" if rare else "pretrain",
        "state": State.FAILED if rare else State.SUCCEEDED,
        "settled": True,
        "attempt": 1,
    }
    return {**{column: getattr(row, column) for column in columns}, **fixed}


def labels(jobs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One that all have, one that the rare have."""
    for row in jobs:
        words = {"job_id": row["id"], "project": row["project"]}
        yield {**words, "key": "team", "value": "vision"}
        if row["state"] is State.FAILED:
            yield {**words, "key": "paper", "value": "yes"}


def measured(store: JobStore, call: Callable[[JobStore], Any]) -> int:
    """SQLite: instructions of its machine, by tens. PostgreSQL: rows that its plans touched."""
    engine = store._database._engine
    counting = sqlite_steps if engine.dialect.name == "sqlite" else postgres_rows
    call(store)  # before it counts: connections are made, statements are parsed
    with counting(engine) as counts:
        call(store)
    return sum(counts)


@contextmanager
def sqlite_steps(engine: Engine) -> Iterator[list[int]]:
    steps = [0]

    def step() -> None:
        steps[0] += 1

    def count(handler: Callable[[], None] | None) -> None:
        with engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert driver is not None
            driver.set_progress_handler(handler, 10)

    count(step)
    yield steps
    count(None)


@contextmanager
def postgres_rows(engine: Engine) -> Iterator[list[int]]:
    rows: list[int] = []

    def explain(_c: Any, cursor: Any, statement: str, words: Any, _x: Any, _m: Any) -> None:
        if statement.startswith("SELECT"):
            cursor.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", words)
            (plan,) = cursor.fetchone()
            rows.append(touched((plan if isinstance(plan, list) else json.loads(plan))[0]["Plan"]))

    event.listen(engine, "before_cursor_execute", explain)
    yield rows
    event.remove(engine, "before_cursor_execute", explain)


def touched(plan: dict[str, Any]) -> int:
    """Rows that a plan and its parts read and gave on."""
    names = ("Actual Rows", "Rows Removed by Filter", "Rows Removed by Join Filter")
    own = sum(plan.get(name, 0) for name in names) * plan["Actual Loops"]
    return int(own) + sum(touched(part) for part in plan.get("Plans", ()))
