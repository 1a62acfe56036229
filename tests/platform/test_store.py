"""The store's contract: one class, every engine."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from stoplab_platform.errors import (
    Conflict,
    IllegalMove,
    KeyReused,
    NotFound,
    StoreUnavailable,
)
from stoplab_platform.jobs import listing
from stoplab_platform.jobs.models import IdempotencyRecord, Intent, Job, JobQuery, Role, Scope
from stoplab_platform.jobs.states import ReasonCode, State
from stoplab_platform.jobs.store import JobStore
from support_invariants import keeps_its_spec, one_job, stays
from support_store import evaluation, new_job

KEY = IdempotencyRecord("key", "digest")


@pytest.fixture
def job(store: JobStore) -> Job:
    return store.submit(new_job(labels={"a": "1", "b": "2"})).job


class TestSubmit:
    def test_is_read_back_whole(self, store: JobStore) -> None:
        first = store.submit(new_job()).job
        new = new_job(labels={"b": "2", "a": "1"}, priority=3, retry_of=first.id)
        job = store.submit(new).job
        assert job == store.get(job.id)
        for name in ("id", "kind", "name", "project", "owner", "priority", "retry_of"):
            assert getattr(job, name) == getattr(new, name)
        assert (job.spec, job.spec_digest) == (new.spec, new.spec_digest)
        assert job.labels == new.labels
        assert (job.state, job.version, job.attempt) == (State.QUEUED, 1, 0)
        assert job.created_at.tzinfo is not None
        assert datetime.now(UTC) - job.created_at < timedelta(minutes=1)

    def test_order_inside_the_spec_is_kept(self, store: JobStore) -> None:
        spec = {"arms": {"z": {}, "a": {}}}
        job = store.submit(new_job(spec=spec)).job
        assert list(store.get(job.id).spec["arms"]) == ["z", "a"]

    def test_text_that_no_database_would_take(self, store: JobStore) -> None:
        """NUL and half a character: a run may print them when it fails, a client ask for them."""
        job = store.submit(new_job(spec={"note": "a\0b\ud800"})).job
        assert store.get(job.id).spec == {"note": "a\0b\ud800"}
        failed = store.move(job, State.FAILED, actor="x", message="bad byte \0, half \ud800")
        assert failed.message == "bad byte \ufffd, half ?"
        assert store.events(job.id)[-1].message == failed.message
        with pytest.raises(NotFound):
            store.get("j_\0")
        query = JobQuery(project="p\0", prefix="\0\ud800", labels=(("\0", "\0"),), cursor="\0")
        assert store.list(query).items == ()
        assert store.principal("\0") is None

    def test_the_longest_of_everything(self, store: JobStore) -> None:
        """What the API lets in, in characters of the most bytes."""
        wide = "\U0001f600"
        new = new_job(
            name=wide * 120, project=wide * 64, owner=wide * 64, labels={wide * 63: wide * 255}
        )
        job = store.submit(new, idempotency=IdempotencyRecord(wide * 255, "d" * 64)).job
        store.record(job.id, actor=wide * 64, verb="note", message=wide * 100_000)
        assert store.get(job.id) == job
        assert store.list(JobQuery(prefix=wide * 120, labels=((wide * 63, wide * 255),))).items
        assert store.lease("admission", "h" * 120, 60)

    def test_same_key_same_job(self, store: JobStore) -> None:
        first = store.submit(new_job(), idempotency=KEY)
        again = store.submit(new_job(), idempotency=KEY)
        assert (first.replayed, again.replayed) == (False, True)
        assert again.job == first.job
        assert len(store.list(JobQuery()).items) == 1

    def test_same_key_other_body(self, store: JobStore) -> None:
        store.submit(new_job(), idempotency=KEY)
        with pytest.raises(KeyReused, match="'key'"):
            store.submit(new_job(), idempotency=IdempotencyRecord("key", "other"))
        assert len(store.list(JobQuery()).items) == 1

    def test_keys_belong_to_their_owner(self, store: JobStore) -> None:
        store.submit(new_job(), idempotency=KEY)
        assert not store.submit(new_job(owner="ben"), idempotency=KEY).replayed
        assert not store.submit(new_job(project="other"), idempotency=KEY).replayed

    def test_one_key_from_many_threads_makes_one_job(self, store: JobStore) -> None:
        with ThreadPoolExecutor(8) as pool:
            submits = [pool.submit(store.submit, new_job(), idempotency=KEY) for _ in range(16)]
            done = [submit.result() for submit in submits]
        one_job(done)


class TestMove:
    def test_one_event_a_move(self, store: JobStore, job: Job) -> None:
        moved = store.move(
            job, State.CANCELLED, actor="ana", verb="cancel",
            reason_code=ReasonCode.USER_REQUEST, message="enough",
        )  # fmt: skip
        assert moved == store.get(job.id)
        assert (moved.version, moved.state, moved.message) == (2, State.CANCELLED, "enough")
        assert moved.finished_at is not None
        first, second = store.history(job.id)
        assert (first.from_state, first.to_state) == (None, State.QUEUED)
        assert (second.from_state, second.to_state) == (State.QUEUED, State.CANCELLED)
        assert (second.actor, second.verb) == ("ana", "cancel")
        assert (second.reason_code, second.message) == (ReasonCode.USER_REQUEST, "enough")

    def test_a_stale_job_moves_nothing(self, store: JobStore, job: Job) -> None:
        store.move(job, State.STARTING, actor="one", attempt=1)
        with pytest.raises(Conflict):
            store.move(job, State.CANCELLED, actor="two")
        assert store.get(job.id).state is State.STARTING
        assert len(store.history(job.id)) == 2

    def test_of_many_movers_one_wins(self, store: JobStore, job: Job) -> None:
        def start(_: int) -> bool:
            try:
                store.move(job, State.STARTING, actor="x", attempt=job.attempt + 1)
            except Conflict:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(start, range(16))) == 1
        assert store.get(job.id).attempt == 1
        assert len(store.history(job.id)) == 2

    def test_an_end_is_final(self, store: JobStore, job: Job) -> None:
        keeps_its_spec(store, job)
        running = store.move(job, State.STARTING, actor="x", attempt=1)
        stays(store, store.move(running, State.SUCCEEDED, actor="x"), running)

    def test_illegal(self, store: JobStore, job: Job) -> None:
        with pytest.raises(IllegalMove, match="QUEUED") as caught:
            store.move(job, State.RUNNING, actor="x")
        assert caught.value.allowed == ("cancel", "pause")
        assert store.get(job.id) == job

    def test_columns_and_stamps(self, store: JobStore, job: Job) -> None:
        job = store.move(job, State.STARTING, actor="x", attempt=1)
        assert job.started_at is None
        job = store.move(job, State.RUNNING, actor="x")
        started = job.started_at
        assert started is not None
        job = store.move(job, State.RECOVERING, actor="x", attempt=2)
        job = store.move(job, State.RUNNING, actor="x")
        assert (job.started_at, job.attempt) == (started, 2)
        job = store.move(job, State.STOPPING, actor="x", intent=Intent.PAUSED)
        assert job.intent is Intent.PAUSED
        job = store.move(job, State.SUCCEEDED, actor="x", run_digest="d", intent=None)
        assert (job.run_digest, job.intent) == ("d", None)

    def test_recoveries_are_counted_by_reason(self, store: JobStore, job: Job) -> None:
        job = store.move(job, State.STARTING, actor="x")
        for code in (ReasonCode.OOM, ReasonCode.NODE_LOST, ReasonCode.OOM):
            job = store.move(job, State.RECOVERING, actor="x", reason_code=code)
        assert store.recoveries(job.id) == {ReasonCode.OOM: 2, ReasonCode.NODE_LOST: 1}


class TestList:
    def test_pages_newest_first(self, store: JobStore) -> None:
        ids = [store.submit(new_job()).job.id for _ in range(5)]
        seen, cursor = [], None
        while True:
            page = store.list(JobQuery(limit=2, cursor=cursor))
            seen += [job.id for job in page.items]
            store.submit(new_job())  # what comes meanwhile moves no page
            cursor = page.next_cursor
            if cursor is None:
                break
        assert seen == sorted(ids, reverse=True)

    def test_filters(self, store: JobStore) -> None:
        one = store.submit(new_job(name="Alpha_1", labels={"a": "1", "b": "2"})).job
        two = store.submit(new_job(name="alpha%2", kind="sweep", labels={"a": "1"})).job
        three = store.submit(new_job(name="beta", project="other")).job
        store.move(two, State.CANCELLED, actor="x")

        def found(**query: object) -> set[str]:
            return {job.id for job in store.list(JobQuery(**query)).items}  # type: ignore[arg-type]

        assert found() == {one.id, two.id, three.id}
        assert found(project="default") == {one.id, two.id}
        assert found(states=(State.QUEUED, State.CANCELLED)) == {one.id, two.id, three.id}
        assert found(states=(State.CANCELLED,)) == {two.id}
        assert found(kinds=("sweep",)) == {two.id}
        assert found(labels=(("a", "1"),)) == {one.id, two.id}
        assert found(labels=(("a", "1"), ("b", "2"))) == {one.id}
        assert found(labels=(("a", "2"),)) == set()
        assert found(prefix="ALPHA") == {one.id, two.id}
        assert found(prefix="alpha%") == {two.id}
        assert found(prefix=three.id) == {three.id}
        assert found(prefix="lpha") == set()
        assert found(prefix="alpha", states=(State.QUEUED,), labels=(("b", "2"),)) == {one.id}
        assert found(prefix=two.id, kinds=("sweep", "compare")) == {two.id}
        assert found(prefix="beta", project="default") == set()
        assert found(states=(State.CANCELLED,), kinds=("pretrain",)) == set()

    def test_any_case_of_any_script(self, store: JobStore) -> None:
        job = store.submit(new_job(name="ÄRGER Ωmega")).job
        for prefix in ("ä", "Ärger ω", "ÄRGER ΩMEGA"):
            assert [found.id for found in store.list(JobQuery(prefix=prefix)).items] == [job.id]

    def test_many_of_a_name_are_found_as_few_are(
        self, store: JobStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ids = [store.submit(new_job(name="run")).job.id for _ in range(3)]
        store.submit(new_job(name="other"))
        for few in (3, 2):
            monkeypatch.setattr(listing, "FEW", few)
            page = store.list(JobQuery(prefix="RUN", limit=2))
            last = store.list(JobQuery(prefix="RUN", limit=2, cursor=page.next_cursor))
            assert [job.id for job in (*page.items, *last.items)] == ids[::-1]

    def test_unfinished_and_unsettled(self, store: JobStore, job: Job) -> None:
        assert [found.id for found in store.unfinished()] == [job.id]
        job = store.move(job, State.STARTING, actor="x", attempt=1)
        assert [found.id for found in store.unfinished()] == [job.id]
        assert store.unsettled() == []
        job = store.move(job, State.FAILED, actor="x")
        assert store.unfinished() == []
        assert [found.id for found in store.unsettled()] == [job.id]
        store.settle(job)
        assert store.unsettled() == []

    def test_what_never_ran_needs_no_settling(self, store: JobStore, job: Job) -> None:
        store.move(job, State.CANCELLED, actor="x")
        assert store.unsettled() == []

    def test_a_resumed_job_is_settled_anew(self, store: JobStore, job: Job) -> None:
        job = store.move(job, State.STARTING, actor="x", attempt=1)
        job = store.move(job, State.STOPPING, actor="x", intent=Intent.PAUSED)
        paused = store.move(job, State.PAUSED, actor="x")
        store.settle(paused)
        job = store.move(store.get(job.id), State.QUEUED, actor="x")
        job = store.move(job, State.STARTING, actor="x", attempt=2)
        store.move(job, State.SUCCEEDED, actor="x")
        assert [found.id for found in store.unsettled()] == [job.id]


class TestEditing:
    def test_edit(self, store: JobStore, job: Job) -> None:
        edited = store.edit(job, actor="ana", labels={"b": "3", "c": "4"}, priority=9)
        assert edited == store.get(job.id)
        assert (edited.labels, edited.priority, edited.version) == ({"b": "3", "c": "4"}, 9, 2)
        with pytest.raises(Conflict):
            store.edit(job, actor="ana", priority=1)
        again = store.edit(edited, actor="ana", limits={"max_concurrent": 2})
        assert (again.labels, again.limits) == ({"b": "3", "c": "4"}, {"max_concurrent": 2})
        assert store.edit(again, actor="ana", priority=1).limits == {"max_concurrent": 2}
        assert "max_concurrent" in str([event.message for event in store.events(job.id)])

    def test_hide(self, store: JobStore, job: Job) -> None:
        with pytest.raises(IllegalMove):
            store.hide(job, actor="ana")
        store.hide(store.move(job, State.CANCELLED, actor="ana"), actor="ana")
        assert store.list(JobQuery()).items == ()
        with pytest.raises(NotFound):
            store.get(job.id)

    def test_who_evaluates_a_job_keeps_it(self, store: JobStore, job: Job) -> None:
        for to in (State.STARTING, State.RUNNING, State.SUCCEEDED):
            job = store.move(job, to, actor="x", attempt=1)
        store.submit(new_job(of=evaluation(store.submit(new_job()).job.id)))
        probe = store.submit(new_job(of=evaluation(job.id))).job
        with pytest.raises(IllegalMove, match=probe.id):
            store.hide(job, actor="ana")
        store.move(probe, State.CANCELLED, actor="ana")
        store.hide(job, actor="ana")

    def test_events_after(self, store: JobStore, job: Job) -> None:
        store.record(job.id, actor="x", verb="kill", message="why")
        first, second = store.events(job.id)
        assert (second.verb, second.message, second.to_state) == ("kill", "why", None)
        assert store.events(job.id, after=first.seq) == [second]
        assert [event.verb for event in store.history(job.id)] == ["submit"]

    def test_other_projects_jobs_do_not_exist(self, store: JobStore, job: Job) -> None:
        assert store.get(job.id, "default") == job
        for project in ("other", ""):
            with pytest.raises(NotFound):
                store.get(job.id, project)
        with pytest.raises(NotFound):
            store.get("j_none")


class TestTokens:
    def test_only_the_hash_is_kept(self, store: JobStore, url: str) -> None:
        token, secret = store.create_token("ci", owner="ana", project="p", role=Role.VIEWER)
        principal = store.principal(secret)
        assert principal is not None
        assert (principal.owner, principal.project, principal.role) == ("ana", "p", Role.VIEWER)
        (kept,) = store.tokens("p")
        assert kept.last_used_at is not None
        assert replace(kept, last_used_at=None) == token
        assert store.tokens("other") == []
        engine = create_engine(url)
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT * FROM tokens")).all()
        engine.dispose()
        assert secret not in str(rows)
        assert store.principal("wrong") is None

    def test_revoked_and_expired(self, store: JobStore) -> None:
        words = {"owner": "ana", "project": "p", "role": Role.ADMIN}
        token, secret = store.create_token("a", **words)  # type: ignore[arg-type]
        with pytest.raises(NotFound):
            store.revoke_token(token.id, "other")
        store.revoke_token(token.id, "p")
        assert store.principal(secret) is None
        past = datetime.now(UTC) - timedelta(seconds=1)
        _, old = store.create_token("b", expires_at=past, **words)  # type: ignore[arg-type]
        assert store.principal(old) is None

    def test_a_given_secret(self, store: JobStore) -> None:
        given = "s" * 40
        _, secret = store.create_token(
            "local", owner="ana", project="p", role=Role.ADMIN, secret=given
        )
        assert secret == given
        assert store.principal(given) is not None

    def test_a_rotated_one_has_another_secret_and_lives_as_long_again(
        self, store: JobStore
    ) -> None:
        words = {"owner": "ana", "project": "p", "role": Role.ADMIN}
        soon = datetime.now(UTC) + timedelta(hours=1)
        token, old = store.create_token("a", expires_at=soon, **words)  # type: ignore[arg-type]
        with pytest.raises(NotFound):
            store.rotate_token(token.id, "other")
        fresh, new = store.rotate_token(token.id, "p")
        assert fresh.id == token.id
        assert fresh.expires_at is not None
        assert fresh.expires_at - fresh.created_at == soon - token.created_at
        assert store.principal(old) is None
        assert store.principal(new) is not None
        store.revoke_token(token.id, "p")
        with pytest.raises(NotFound, match="revoked"):
            store.rotate_token(token.id, "p")

    def test_its_use_is_noted_once_a_minute(self, store: JobStore) -> None:
        _, secret = store.create_token("a", owner="ana", project="p", role=Role.VIEWER)
        store.principal(secret)
        (first,) = store.tokens("p")
        store.principal(secret)
        assert store.tokens("p") == [first]
        assert first.last_used_at is not None

    def test_scopes_are_kept(self, store: JobStore) -> None:
        scopes = frozenset({Scope.JOBS_READ})
        _, secret = store.create_token(
            "a", owner="ana", project="p", role=Role.ADMIN, scopes=scopes
        )
        principal = store.principal(secret)
        assert principal is not None
        assert principal.scopes == scopes


class TestDatabase:
    def test_lease(self, store: JobStore) -> None:
        assert store.lease("admission", "one", 60)
        assert not store.lease("admission", "two", 60)
        assert store.lease("admission", "one", -1)
        assert store.lease("admission", "two", 60)
        assert store.lease("admission", "two", 60)
        assert not store.lease("nothing", "two", 60)

    def test_ping_writes(self, store: JobStore) -> None:
        store.ping()


def test_a_database_that_is_away(tmp_path: Path) -> None:
    folder = tmp_path / "store.db"
    folder.mkdir()  # no file can be opened there
    store = JobStore(f"sqlite:///{folder}")
    with pytest.raises(StoreUnavailable):
        store.ping()
    with pytest.raises(StoreUnavailable):
        store.unfinished()
