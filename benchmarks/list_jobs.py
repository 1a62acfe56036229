"""Listing 50 of 100,000 jobs against 50 of 1,000, by every filter, on both databases.

    python benchmarks/list_jobs.py [--json]

The large lab also holds another project of 100,000 jobs with the same names and labels.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from harness import Result, compare, tell
from sqlalchemy import create_engine, insert, text

from stoplab_platform.jobs.models import JobQuery
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.jobs.tables import EventRow, JobRow, LabelRow

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support_postgres import running_postgres

SMALL, LARGE = 1_000, 100_000
ROUNDS = 40
BATCH = 10_000
SPEC = {"kind": "pretrain", "fields": {f"field_{n}": n / 7 for n in range(60)}}
QUERIES = {
    "all": {},
    "a page in the middle": {"cursor": "middle"},
    "a common state": {"states": (State.SUCCEEDED,)},
    "a rare state": {"states": (State.FAILED,)},
    "three states": {"states": (State.RUNNING, State.FAILED, State.SUCCEEDED)},
    "a rare kind": {"kinds": ("sweep",)},
    "a common label": {"labels": (("team", "vision"),)},
    "a rare label": {"labels": (("paper", "yes"),)},
    "a common name": {"prefix": "RUN-"},
    "the oldest by name": {"prefix": "run-000"},
    "one name": {"prefix": "run-000777"},
    "an id": {"prefix": "j_"},
    "no such name": {"prefix": "nothing"},
    "a small project": {"project": "small"},
}
"""What is asked. The rare are 60 in both labs: as many in a page, from more jobs."""


def main() -> None:
    """Fill two labs on each database, compare their lists."""
    results: list[Result] = []
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        server = opened.enter_context(running_postgres(durable=False))
        names = {
            "SQLite": [f"sqlite:///{folder}/{size}.db" for size in (LARGE, SMALL)],
            "PostgreSQL": [opened.enter_context(server.database()) for _ in (LARGE, SMALL)],
        }
        for database, urls in names.items():
            stores = [filled(url, size) for url, size in zip(urls, (LARGE, SMALL), strict=True)]
            results += list(compared(database, *stores))
            for store in stores:
                store.close()
    tell("list_jobs", results)


def compared(database: str, large: JobStore, small: JobStore) -> Iterator[Result]:
    """Every list, and what the reconciler looks for in each pass."""
    for name, query in QUERIES.items():
        yield compare(
            f"{database}: {name}",
            lambda query=query: large.list(asked(query, LARGE)),
            lambda query=query: small.list(asked(query, SMALL)),
            ROUNDS,
            at_most=2.0,
        )
    for name in ("unfinished", "unsettled"):
        yield compare(
            f"{database}: {name}", getattr(large, name), getattr(small, name), ROUNDS, at_most=2.0
        )


def asked(query: dict[str, Any], size: int) -> JobQuery:
    """The query, in the project `big` unless it names another."""
    words = {"project": "big", **query}
    if "cursor" in words:
        words["cursor"] = job_id("big", size // 2)
    return JobQuery(**words)


def filled(url: str, size: int) -> JobStore:
    """A store with ``size`` jobs of one project, as many of another, and 60 of a third."""
    store = JobStore(url)
    store.migrate()
    engine = create_engine(url)
    tables = (JobRow.__table__, LabelRow.__table__, EventRow.__table__)
    with engine.begin() as connection:
        for project, count in (("big", size), ("other", size), ("small", 60)):
            for start in range(0, count, BATCH):
                jobs = range(start, min(start + BATCH, count))
                rows = [job(project, number, count) for number in jobs]
                for table, made in zip(
                    tables, (rows, list(labels(rows)), list(events(rows))), strict=True
                ):
                    connection.execute(insert(table), made)
    if engine.dialect.name == "postgresql":  # its own housekeeping, which would disturb the clock
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.execute(text("VACUUM ANALYZE"))
    engine.dispose()
    return store


def job_id(project: str, number: int) -> str:
    """Sorted by age."""
    return f"j_{number:010d}{project[0]}"


def job(project: str, number: int, count: int) -> dict[str, Any]:
    """A job's row; the rare ones lie scattered."""
    place = number % (count // 60)
    state = {1: State.FAILED, 2: State.RUNNING, 3: State.CANCELLED}.get(place, State.SUCCEEDED)
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
    return {
        "id": job_id(project, number),
        "kind": "sweep" if place == 4 else "pretrain",
        "name": f"Run-{number:06d}",
        "name_key": f"run-{number:06d}",
        "project": project,
        "owner": "ana",
        "priority": 0,
        "spec": SPEC,
        "spec_digest": "0" * 64,
        "version": 4,
        "attempt": 1,
        "state": state,
        "created_at": at,
        "settled": state in (State.SUCCEEDED, State.FAILED),
        "hidden": False,
    }


def labels(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One that all have, one that few have."""
    for row in rows:
        words = {"job_id": row["id"], "project": row["project"]}
        yield {**words, "key": "team", "value": "vision"}
        if row["state"] is State.FAILED:
            yield {**words, "key": "paper", "value": "yes"}


def events(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """How it began."""
    for row in rows:
        yield {
            "job_id": row["id"],
            "at": row["created_at"],
            "actor": "ana",
            "verb": "submit",
            "to_state": State.QUEUED,
        }


if __name__ == "__main__":
    main()
