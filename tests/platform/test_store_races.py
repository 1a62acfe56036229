"""Two replicas on one database: two stores in this process, and two processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from stoplab_platform.errors import Conflict, IllegalMove, NotFound
from stoplab_platform.jobs.models import IdempotencyRecord, Job, JobQuery
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.store import JobStore
from support_store import evaluation, new_job, open_store

ROUNDS = 10

REPLICA = """
import json, sys, time
from pathlib import Path
from stoplab_platform.errors import Conflict, IllegalMove
from stoplab_platform.jobs.models import IdempotencyRecord
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.store import JobStore
from support_store import new_job

url, me, gate, rounds = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
store, told = JobStore(url), {"submitted": [], "won": [], "leased": 0}
(gate / me).touch()
while len(list(gate.iterdir())) < 2:
    time.sleep(0.001)
for number in range(rounds):
    key = IdempotencyRecord(f"key {number}", "digest")
    done = store.submit(new_job(), idempotency=key)
    told["submitted"].append([done.job.id, done.replayed])
    try:
        store.move(done.job, State.STARTING, actor=me, attempt=1)
        told["won"].append(done.job.id)
    except (Conflict, IllegalMove):
        pass
    told["leased"] += store.lease("admission", me, 600)
print(json.dumps(told))
"""
"""A replica that does at each turn what the other does at the same moment."""


@pytest.fixture
def other(store: JobStore, url: str) -> Iterator[JobStore]:
    """A second store on the same database."""
    with open_store(url) as other:
        yield other


def both(first: Callable[[], Any], second: Callable[[], Any]) -> list[Any]:
    """What two calls at once gave, or raised."""

    def outcome(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (Conflict, IllegalMove, NotFound) as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return [answer.result() for answer in [pool.submit(outcome, c) for c in (first, second)]]


def ended(store: JobStore, *, attempt: int = 1) -> Job:
    """A job that ran and failed."""
    job = store.submit(new_job()).job
    job = store.move(job, State.STARTING, actor="x", attempt=attempt)
    return store.move(job, State.FAILED, actor="x")


class TestTwoStores:
    def test_one_key(self, store: JobStore, other: JobStore) -> None:
        for number in range(ROUNDS):
            key = IdempotencyRecord(f"key {number}", "digest")
            one, two = both(
                lambda key=key: store.submit(new_job(), idempotency=key),
                lambda key=key: other.submit(new_job(), idempotency=key),
            )
            assert one.job == two.job
            assert one.replayed is not two.replayed
        assert len(store.list(JobQuery()).items) == ROUNDS

    def test_one_move(self, store: JobStore, other: JobStore) -> None:
        for _ in range(ROUNDS):
            job = store.submit(new_job()).job
            outcomes = both(
                lambda job=job: store.move(job, State.STARTING, actor="one", attempt=1),
                lambda job=job: other.move(job, State.CANCELLED, actor="two"),
            )
            assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 1
            (winner,) = (outcome for outcome in outcomes if isinstance(outcome, Job))
            assert store.get(job.id) == winner
            assert len(store.history(job.id)) == 2

    def test_a_move_and_a_change_of_labels(self, store: JobStore, other: JobStore) -> None:
        for _ in range(ROUNDS):
            job = store.submit(new_job(labels={"a": "1"})).job
            outcomes = both(
                lambda job=job: store.move(job, State.STARTING, actor="one", attempt=1),
                lambda job=job: other.edit(job, actor="two", labels={"b": "2"}),
            )
            assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 1
            (winner,) = (outcome for outcome in outcomes if isinstance(outcome, Job))
            assert store.get(job.id) == winner

    def test_a_deletion_and_an_extension(self, store: JobStore, other: JobStore) -> None:
        """A job is deleted, or another goes on from it; never both."""
        for _ in range(ROUNDS):
            job = ended(store)
            hidden, heir = both(
                lambda job=job: store.hide(job, actor="one"),
                lambda job=job: other.submit(new_job(extends=job.id)),
            )
            if hidden is None:
                assert isinstance(heir, NotFound)
            else:
                assert isinstance(hidden, IllegalMove)
                assert store.get(job.id).version == job.version
                assert store.get(heir.job.id).extends == job.id

    def test_a_pruning_and_a_retry(self, store: JobStore, other: JobStore) -> None:
        """It may lose files until somebody wants them, and not after."""
        for _ in range(ROUNDS):
            job = ended(store)
            both(
                lambda job=job: store.prune(job.id, actor="one", message="m", keep="keep"),
                lambda job=job: other.submit(new_job(retry_of=job.id)),
            )
            assert not store.prune(job.id, actor="one", message="m", keep="keep")

    def test_a_deletion_and_an_evaluation(self, store: JobStore, other: JobStore) -> None:
        for _ in range(ROUNDS):
            job = ended(store)
            hidden, judge = both(
                lambda job=job: store.hide(job, actor="one"),
                lambda job=job: other.submit(new_job(of=evaluation(job.id))),
            )
            assert isinstance(judge, NotFound) == (hidden is None)

    def test_one_lease(self, store: JobStore, other: JobStore) -> None:
        for _ in range(ROUNDS):
            taken = both(
                lambda: store.lease("admission", "one", 60),
                lambda: other.lease("admission", "two", 60),
            )
            assert sum(taken) == 1
            assert store.lease("admission", ("one", "two")[taken.index(True)], -1)

    def test_what_one_wrote_the_other_sees(self, store: JobStore, other: JobStore) -> None:
        job = store.submit(new_job()).job
        assert other.get(job.id) == job
        moved = other.move(job, State.PAUSED, actor="two")
        assert store.get(job.id) == moved


def test_two_processes(store: JobStore, url: str, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.mkdir()
    words = [str(gate), str(ROUNDS)]
    replicas = [
        subprocess.Popen(
            [sys.executable, "-c", REPLICA, url, name, *words],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
        )
        for name in ("one", "two")
    ]
    one, two = (json.loads(replica.communicate(timeout=120)[0]) for replica in replicas)
    ids = [job_id for job_id, _ in one["submitted"]]
    assert [job_id for job_id, _ in two["submitted"]] == ids
    assert [job.id for job in reversed(store.list(JobQuery(limit=50)).items)] == sorted(ids)
    replays = [replayed for told in (one, two) for _, replayed in told["submitted"]]
    assert Counter(replays) == {True: ROUNDS, False: ROUNDS}
    assert sorted(one["won"] + two["won"]) == sorted(ids)
    assert sorted([one["leased"], two["leased"]]) == [0, ROUNDS]
    for job_id in ids:
        assert [event.verb for event in store.events(job_id)] == ["submit", "move"]
