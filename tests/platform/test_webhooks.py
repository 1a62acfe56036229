"""Telling an address how jobs ended."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from stoplab_platform.errors import SettingsError
from stoplab_platform.jobs.models import Job
from stoplab_platform.jobs.states import TERMINAL, State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.reconciler import Reconciler
from stoplab_platform.runner.local import LocalRunner
from stoplab_platform.secret_store import Secrets
from stoplab_platform.settings import Settings
from stoplab_platform.webhooks import LONGEST_PAUSE_S, Notifier, pause_s, signature
from support_jobs import QUICK, reconciling, script
from support_store import lab_settings, new_job, open_store, run_spec, wait_for
from support_webhooks import Heard, listening

KEY = "whsec_" + base64.b64encode(b"k" * 32).decode()


@pytest.fixture
def store(home: Path) -> Iterator[JobStore]:
    with open_store(lab_settings(home).database) as store:
        yield store


def telling(home: Path, port: int, **changes: Any) -> Settings:
    settings = lab_settings(
        home,
        webhook_url="secret://hook",
        webhook_secret="secret://hook-key",
        **changes,
    )
    Secrets(settings).set("hook", f"http://127.0.0.1:{port}/hook")
    Secrets(settings).set("hook-key", KEY)
    return settings


def ended(store: JobStore, state: State = State.SUCCEEDED) -> Job:
    """A job that ended while no API was there."""
    job = store.submit(new_job()).job
    for to in (State.STARTING, State.RUNNING, state):
        job = store.move(job, to, actor="test")
    return job


def cancelled(store: JobStore) -> Job:
    """A job that no machine could run, cancelled while it waits."""
    huge = run_spec(compute={"cpus_per_worker": 4096})
    job = store.submit(new_job(huge)).job
    return store.move(job, State.CANCELLED, actor="test")


@contextmanager
def lab(store: JobStore, settings: Settings) -> Iterator[None]:
    """An API's inside, for as long as the block lasts."""
    runner = LocalRunner(settings.home / "runner")
    with reconciling(Reconciler(store, runner, settings, patience=QUICK, command=script("1"))):
        yield


def verified(request: tuple[dict[str, str], bytes]) -> bool:
    """As a receiver checks it, by the standard's own words."""
    headers, body = request
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    digest = hmac.new(b"k" * 32, signed, hashlib.sha256).digest()
    return headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()


def test_an_address_that_fails_dies_and_comes_back(
    home: Path, store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    """With a restart of the API while it is away: each end is told, and told once."""
    heard = Heard(answers=[503, 500])
    first = ended(store)
    with listening(heard) as port:
        settings = telling(home, port)
        with lab(store, settings):
            wait_for(lambda: heard.taken, "the first news")
    assert [verified(request) for request in heard.requests] == [True] * 3
    assert len({request[0]["webhook-id"] for request in heard.requests}) == 1
    second = ended(store, State.FAILED)
    with lab(store, settings):  # nobody listens now
        wait_for(lambda: "ConnectError" in caplog.text, "a try")
        third = cancelled(store)
    with listening(heard, port), lab(store, settings):
        wait_for(lambda: len(heard.taken) == 3, "the other news")
    told = [(one["type"], one["data"]["id"]) for one in heard.taken]
    assert told == [
        ("job.succeeded", first.id),
        ("job.failed", second.id),
        ("job.cancelled", third.id),
    ]
    sent = [event for event in store.events(first.id) if event.verb == "webhook.sent"]
    (end,) = [event for event in store.history(first.id) if event.to_state in TERMINAL]
    assert [event.message for event in sent] == [f"event {end.seq}"]
    assert heard.taken[0]["id"] == f"{first.id}.{end.seq}"


def test_one_that_is_refused_keeps_no_other_waiting(home: Path, store: JobStore) -> None:
    heard = Heard(answers=[400])
    first, second = ended(store), ended(store)
    with listening(heard) as port, lab(store, telling(home, port)):
        wait_for(lambda: len(heard.taken) == 2, "both")
    assert [one["data"]["id"] for one in heard.taken] == [second.id, first.id]


def test_replicas_do_not_both_tell(home: Path, store: JobStore) -> None:
    heard = Heard()
    jobs = [ended(store) for _ in range(5)]
    with listening(heard) as port:
        settings = telling(home, port)
        with lab(store, settings), lab(store, settings):
            wait_for(lambda: len(heard.taken) >= len(jobs), "all")
            more = cancelled(store)
            wait_for(lambda: heard.taken[-1]["data"]["id"] == more.id, "one more")
    told = [one["data"]["id"] for one in heard.taken]
    assert told == [job.id for job in (*jobs, more)]


def test_only_the_states_that_were_asked_for(home: Path, store: JobStore) -> None:
    heard = Heard()
    ended(store)
    failed = ended(store, State.FAILED)
    with listening(heard) as port:
        with lab(store, telling(home, port, webhook_states="FAILED")):
            wait_for(lambda: heard.taken, "the news")
    assert [one["data"]["id"] for one in heard.taken] == [failed.id]
    with pytest.raises(SettingsError, match="STOPLAB_WEBHOOK_STATES"):
        Settings(webhook_states="DONE")


def test_after_a_day_it_is_given_up(home: Path, store: JobStore) -> None:
    heard = Heard()
    old, fresh = ended(store), ended(store)
    engine = create_engine(lab_settings(home).database)
    with engine.begin() as connection:
        late = datetime.now(UTC) - timedelta(hours=24, minutes=5)
        sql = "UPDATE events SET at = :at WHERE job_id = :id"
        connection.execute(text(sql), {"at": late.isoformat(" ")[:26], "id": old.id})
    engine.dispose()
    with listening(heard) as port, lab(store, telling(home, port)):
        wait_for(lambda: heard.taken, "the news")
    assert [one["data"]["id"] for one in heard.taken] == [fresh.id]
    assert [event.verb for event in store.events(old.id)][-1] == "webhook.lost"


def test_without_an_address_nothing_is_looked_for(home: Path, store: JobStore) -> None:
    notifier = Notifier(store, lab_settings(home))
    notifier.notify()
    assert not notifier._rounds.begun


def test_pauses_grow_and_end() -> None:
    assert [pause_s(times) for times in (1, 2, 3, 4)] == [1, 2, 4, 8]
    assert pause_s(100) == LONGEST_PAUSE_S


def test_a_key_is_text_or_base64() -> None:
    plain = signature("kkkk", "a", "1", b"{}")
    assert signature("whsec_a2traw==", "a", "1", b"{}") == plain
    assert signature("other", "a", "1", b"{}") != plain
