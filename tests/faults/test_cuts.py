"""Connections that are cut at random, between any two parts: jobs end as if nothing had been."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from stoplab_api.client import ApiError, Client, Unreachable
from stoplab_platform import settle
from stoplab_platform.jobs.models import JobQuery
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.paths import Home
from stoplab_platform.runner.ray_jobs import RayJobsRunner
from support_api import SPEC
from support_invariants import begun_once
from support_jobs import kill_supervisors, running_lab
from support_ledger import kill_ledger
from support_mlflow import free_port
from support_postgres import Postgres
from support_proxy import Proxy, proxy
from support_ray import ray_head
from support_replica import SECRET, Replica, make_token, once, running
from support_store import open_store, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

JOBS, CUTS = 20, "cut connections"
CLIENT, DATABASE, CLUSTER = (500, 12_000), (2_000, 60_000), (400, 4_000)
"""Bytes that one connection may carry: some requests, many statements, a request or some."""
WORK = once("\nimport time\nfor n in range(40): print('line', n, flush=True); time.sleep(0.02)")


class Person:
    """Somebody whose every call may break, and who asks again."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def submit(self, key: str) -> str:
        """The id of the job that the key made."""
        taken: list[str] = []

        def tried() -> bool:
            try:
                taken.append(self._client.submit({**SPEC, "name": key}, key=key).id)
            except Unreachable:
                return False
            except ApiError as error:
                if error.status < 500:
                    raise
            return bool(taken)

        wait_for(tried, f"{key} to be taken", 120)
        return taken[0]

    def follows(self, job_id: str) -> str:
        """The whole log of a job, to its end."""
        return "".join(self._client.logs(job_id, follow=True))


@pytest.fixture
def stack(home: Path) -> Iterator[ExitStack]:
    """What a test opens."""
    with ExitStack() as stack:
        stack.callback(kill_supervisors, home)
        yield stack


@pytest.mark.parametrize("places", ["client", "database", "client and database"])
def test_between_client_api_and_database(
    home: Path, postgres: Postgres, stack: ExitStack, places: str
) -> None:
    url = stack.enter_context(postgres.database())
    store = stack.enter_context(open_store(url))
    make_token(store)
    port, database = free_port(), urlsplit(url)
    to_api = stack.enter_context(proxy(port, CLIENT, seed=1))
    to_database = stack.enter_context(proxy(int(database.port or 0), DATABASE, seed=2))
    env = {
        "STOPLAB_DATABASE_URL": url.replace(f":{database.port}/", f":{to_database.port}/"),
        "STOPLAB_CAPACITY_CPUS": "4",
        "STOPLAB_RECONCILE_PERIOD_S": "0.5",
    }
    ledger = stack.enter_context(kill_ledger(f"{places} to API", CUTS))
    stack.enter_context(running(Replica("one", port, home, {"*": WORK}, env)))
    to_api.cutting, to_database.cutting = "client" in places, "database" in places
    client = stack.enter_context(Client(f"http://127.0.0.1:{to_api.port}", SECRET))
    person = Person(client)
    ids = [person.submit(f"job {number}") for number in range(JOBS)]
    logs = {job_id: person.follows(job_id) for job_id in ids}
    wait_for(lambda: succeeded(store) == sorted(ids), "all jobs to succeed", 300)
    for proxied in (to_api, to_database):
        ledger.did(CUTS, proxied.cut)
    ledger.note(f"to the API {told(to_api)}, to the database {told(to_database)}")
    for job_id in ids:
        folder = Home(home).job(job_id)
        assert not begun_once(folder, store.history(job_id))
        assert logs[job_id] == folder.driver_log.read_text()
        assert logs[job_id].count("line 39\n") == 1


@pytest.mark.ray
def test_between_api_and_ray(home: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle.tracking, "finish_runs", lambda *_: 0)
    head = stack.enter_context(ray_head())
    between = stack.enter_context(proxy(int(urlsplit(head.dashboard).port or 0), CLUSTER, seed=3))
    runner = RayJobsRunner(f"http://127.0.0.1:{between.port}", head.token_path)
    stack.callback(runner.close)
    ledger = stack.enter_context(kill_ledger("API to Ray", CUTS))
    lab = stack.enter_context(running_lab(home, tuple(WORK), runner=runner, cpus=2))
    between.cutting = True
    jobs = [lab.submit(f"job {number}") for number in range(6)]
    for job in jobs:
        lab.wait(job, State.SUCCEEDED, 300)
    ledger.did(CUTS, between.cut)
    ledger.note(told(between))
    for job in jobs:
        assert not begun_once(lab.folder(job), lab.store.history(job.id))


def succeeded(store: JobStore) -> list[str]:
    """Every job of the store; all have succeeded."""
    jobs = store.list(JobQuery(limit=200)).items
    return sorted(job.id for job in jobs if job.state is State.SUCCEEDED) * (
        all(job.state is State.SUCCEEDED for job in jobs)
    )


def told(proxied: Proxy) -> str:
    return f"{proxied.cut} of {proxied.connections} connections were cut"
