"""Many submits at once while API replicas are killed: no job is lost, none runs twice."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import httpx
import pytest

from stoplab_platform.jobs.models import JobQuery
from stoplab_platform.jobs.states import TERMINAL
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.settings import Settings
from support_api import SPEC
from support_invariants import begun_once, kept
from support_jobs import kill_supervisors
from support_ledger import KillLedger, kill_ledger
from support_mlflow import free_port
from support_postgres import Postgres
from support_ray import ray_head
from support_replica import SECRET, Replica, make_token, once, running
from support_store import open_store, wait_for

pytestmark = pytest.mark.slow

CLIENTS, SEED = 8, 7150418
SUBMITTING = "kill -9 of an API replica, clients submitting"
RUNNING = "kill -9 of an API replica, jobs running"
ANSWER_S, TRY_S = 10.0, 240.0


@dataclass
class Acknowledged:
    """What clients were told."""

    jobs: dict[str, str] = field(default_factory=dict)
    """The job of each key."""
    replayed: int = 0
    """Of these: keys whose job an earlier try had made, which was never answered."""
    failures: Counter[str] = field(default_factory=Counter)
    """Tries that ended without a job, by how."""


@dataclass
class Storm:
    """Clients that take keys from one queue, and send each to either replica until it is taken."""

    replicas: Sequence[Replica]
    keys: SimpleQueue[str | None] = field(default_factory=SimpleQueue)
    taken: Acknowledged = field(default_factory=Acknowledged)
    _http: httpx.Client = field(
        default_factory=lambda: httpx.Client(timeout=ANSWER_S, trust_env=False)
    )

    @contextmanager
    def clients(self) -> Iterator[None]:
        """They run until every key that the block asked for is acknowledged."""
        with self._http, ThreadPoolExecutor(CLIENTS) as pool:
            working = [pool.submit(self._work, number) for number in range(CLIENTS)]
            try:
                yield
            finally:
                for _ in working:
                    self.keys.put(None)
            for client in working:
                client.result()

    def _work(self, number: int) -> None:
        choice = random.Random(f"{SEED} client {number}")
        while (key := self.keys.get()) is not None:
            wait_for(lambda k=key: self._sent(k, choice), f"{key} to be taken", TRY_S)

    def _sent(self, key: str, choice: random.Random) -> bool:
        """One try at one replica."""
        url = f"{choice.choice(self.replicas).url}/v1/jobs"
        headers = {"Authorization": f"Bearer {SECRET}", "Idempotency-Key": key}
        body = {"spec": {**SPEC, "name": key}}
        try:
            answer = self._http.post(url, json=body, headers=headers)
        except httpx.TransportError as error:
            self.taken.failures[type(error).__name__] += 1
            return False
        if answer.status_code >= 500:
            self.taken.failures[str(answer.status_code)] += 1
            return False
        assert answer.status_code == 202, answer.text
        self.taken.jobs[key] = answer.json()["id"]
        self.taken.replayed += answer.headers.get("Idempotency-Replayed") == "true"
        return True


def rage(storm: Storm, jobs: int, kills: int, ledger: KillLedger) -> list[str]:
    """Ask for jobs in one more portion than there are kills; in the midst of each but the last,
    kill a replica. The next portion does not wait for it to be back.
    """
    choice = random.Random(SEED)
    keys = [f"job-{number}" for number in range(jobs)]
    cuts = [jobs * part // (kills + 1) for part in range(kills + 2)]
    for low, high in pairwise(cuts[:-1]):
        for key in keys[low:high]:
            storm.keys.put(key)
        victim, after = choice.choice(storm.replicas), choice.randrange(low, high)
        victim.await_ready()
        wait_for(lambda n=after: len(storm.taken.jobs) >= n, f"{after} jobs", TRY_S)
        victim.kill()
        ledger.did(SUBMITTING)
        victim.start()
    for key in keys[cuts[-2] :]:
        storm.keys.put(key)
    return keys


def rage_on(storm: Storm, store: JobStore, jobs: int, ledger: KillLedger) -> None:
    """Kill on while the jobs run: at a chosen number of ended ones."""
    choice = random.Random(SEED + 1)
    for after in sorted(choice.sample(range(jobs // 3, jobs), 3)):
        victim = choice.choice(storm.replicas)
        victim.await_ready()
        wait_for(lambda n=after: ended(store) >= n, f"{after} jobs to end", 900)
        victim.kill()
        ledger.did(RUNNING)
        victim.start()


def ended(store: JobStore) -> int:
    """How many jobs have come to an end."""
    return sum(number for (state, _), number in store.census().counts.items() if state in TERMINAL)


def all_jobs(store: JobStore) -> list[Any]:
    """Every job that the store lists."""
    found, cursor = [], None
    while True:
        page = store.list(JobQuery(limit=200, cursor=cursor))
        found += page.items
        if (cursor := page.next_cursor) is None:
            return found


def check(storm: Storm, store: JobStore, home: Path, keys: list[str], ledger: KillLedger) -> None:
    """Every acknowledged job exists once, has succeeded, and began once an attempt."""
    jobs = all_jobs(store)
    assert sorted(storm.taken.jobs) == sorted(keys), "not every key was taken"
    kept(store, storm.taken.jobs.values())
    assert sorted(storm.taken.jobs.values()) == sorted(job.id for job in jobs)
    assert {job.name: job.id for job in jobs} == storm.taken.jobs
    assert Counter(str(job.state) for job in jobs) == {"SUCCEEDED": len(keys)}
    folders = Settings(home=home).folders
    recovered = [job.id for job in jobs if begun_once(folders.job(job.id), store.history(job.id))]
    ledger.note(f"{len(jobs)} jobs, each made once, {len(recovered)} recovered")
    ledger.note(f"failed tries {dict(storm.taken.failures)}, of them {storm.taken.replayed} done")
    assert recovered == [], "that an API dies is no reason to recover a job"


def raging(home: Path, postgres: Postgres, jobs: int, kills: int, **env: str) -> None:
    """The whole of it, on two replicas and one database."""
    with postgres.database() as url, open_store(url) as store:
        make_token(store)
        env = {"STOPLAB_DATABASE_URL": url, "STOPLAB_RECONCILE_PERIOD_S": "0.5", **env}
        replicas = [Replica(n, free_port(), home, {"*": once()}, env) for n in ("one", "two")]
        storm = Storm(replicas)
        try:
            with kill_ledger(f"storm of {jobs}", SUBMITTING, RUNNING) as ledger:
                with running(*replicas):
                    with storm.clients():
                        keys = rage(storm, jobs, kills, ledger)
                    rage_on(storm, store, jobs, ledger)
                    wait_for(lambda: ended(store) == jobs, "all jobs to end", 900)
                check(storm, store, home, keys, ledger)
        finally:
            kill_supervisors(home)


@pytest.mark.timeout(1800)
def test_500_submits(home: Path, postgres: Postgres) -> None:
    raging(home, postgres, 500, 8, STOPLAB_CAPACITY_CPUS="8")


@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_30_submits_on_ray(home: Path, postgres: Postgres) -> None:
    with ray_head() as head:
        cluster = {"RAY_ADDRESS": head.dashboard, "RAY_AUTH_TOKEN_PATH": str(head.token_path)}
        raging(home, postgres, 30, 4, STOPLAB_CAPACITY_CPUS="4", **cluster)
