"""PostgreSQL is away for half a minute while the API holds running jobs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stoplab_platform.jobs.models import JobQuery
from stoplab_platform.jobs.states import State
from stoplab_platform.runner.local import LocalRunner
from support_api import SPEC, Api, eventually, running_api
from support_jobs import kill_supervisors, trainer
from support_postgres import Postgres, running_postgres
from support_replica import SmallRuns

pytestmark = pytest.mark.slow

AWAY_S = 30
COMMANDS = {"short": trainer(500), "long": trainer(3000), "*": trainer(5)}
"""Steps of 20 ms: the short job ends while the database is away, the long one after it."""


@pytest.fixture
def server(home: Path) -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server
    kill_supervisors(home)  # of a test that failed


def submit(api: Api, name: str) -> Any:
    """The answer to a submit whose key is its name."""
    with api.http() as http:
        body = {"spec": {**SPEC, "name": name}}
        return http.post("/v1/jobs", json=body, headers={"Idempotency-Key": name})


def steps(api: Api, job_id: str) -> int:
    path = api.folder(job_id).root / "steps"
    return int(path.read_text()) if path.exists() else 0


@pytest.mark.timeout(400)
def test_half_a_minute(home: Path, server: Postgres) -> None:
    with (
        server.database() as url,
        running_api(
            home,
            runner=SmallRuns(LocalRunner(home / "runner"), COMMANDS),
            reconcile=True,
            database_url=url,
            reconcile_period_s=0.5,
            capacity_cpus=2,
        ) as api,
    ):
        short, long, queued = (submit(api, name).json()["id"] for name in ("short", "long", "next"))
        running = (short, long)
        eventually(lambda: all(api.store.get(i).state is State.RUNNING for i in running), 60)
        before = steps(api, long)
        server.stop()
        lost, refused = time.monotonic(), 0
        while time.monotonic() < lost + AWAY_S:
            answer = submit(api, "meanwhile")
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["Retry-After"]) > 0
            assert answer.json()["code"] == "database-unavailable"
            refused += 1
        assert steps(api, long) > before + 100
        eventually(lambda: api.folder(short).result.exists(), 60)
        server.start()
        print(f"the database was away for {time.monotonic() - lost:.0f} s, refused {refused} times")
        answer = eventually(lambda: (a := submit(api, "meanwhile")).status_code == 202 and a)
        meanwhile = answer.json()["id"]
        ids = [short, long, queued, meanwhile]
        eventually(lambda: all(api.store.get(i).state is State.SUCCEEDED for i in ids), 180)
        assert sorted(job.id for job in api.store.list(JobQuery()).items) == sorted(ids)
        for job_id in ids:
            told = [str(event.to_state) for event in api.store.history(job_id)]
            seen = ["RUNNING"] if job_id in running else told[2:-1]  # a short life may go unseen
            assert told == ["QUEUED", "STARTING", *seen, "SUCCEEDED"]
            assert "RECOVERING" not in told
            log = api.folder(job_id).driver_log.read_text()
            assert (log.count("attempt 1 from 0"), log.count(" from ")) == (1, 1)
        assert refused > 10
