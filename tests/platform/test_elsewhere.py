"""Checkpoints that lie in an object store: who adopts them, and who takes them away."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from stoplab_platform import remote, retention, settle
from stoplab_platform.adoption import adopt
from stoplab_platform.elsewhere import LEFT, Place, begin_at, place_of, places
from stoplab_platform.errors import DataError
from stoplab_platform.files import write_atomic
from stoplab_platform.jobs.models import Job
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.paths import RunFolder
from stoplab_platform.retention import Retention
from stoplab_platform.secret_store import Secrets
from stoplab_platform.service import Jobs
from stoplab_platform.settings import Settings
from stoplab_platform.settle import Settler
from support_s3 import BUCKET, OPTIONS, bucket
from support_specs import problems, run, small
from support_store import ANA, finished, lab_settings, new_job, run_spec

URL = f"s3://{BUCKET}/runs"
SECRET = "secret://bucket"


@pytest.fixture
def settings(home: Path, s3: int, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(remote, "FIRST_S", 0.001)
    monkeypatch.setattr(settle.tracking, "finish_runs", lambda *_: 0)
    monkeypatch.setattr(settle.tracking, "answers", lambda _: True)
    made = lab_settings(home, keep_checkpoints_days=30)
    options = {**OPTIONS, "endpoint_url": f"http://127.0.0.1:{s3}"}
    Secrets(made).set("bucket", json.dumps(options))
    return made


@pytest.fixture
def url(settings: Settings) -> str:
    return settings.database  # the lab's own, of one kind


def ended(jobs: Jobs, store: JobStore) -> Job:
    return finished(store, jobs.submit(ANA, run_spec()).job)


def trained(s3: int, settings: Settings, job: Job) -> RunFolder:
    """A run that has saved a checkpoint in the bucket."""
    folder = settings.folders.job(job.id).run("run")
    begin_at(folder, place_of(URL, SECRET, job.id, "run"))
    for name in ("manifest.json", "state-01.pt"):
        bucket(s3).pipe_file(f"{BUCKET}/runs/{job.id}/run/step-00000007/{name}", b"seven")
    return folder


def left(s3: int, job: Job) -> list[str]:
    return list(bucket(s3).find(f"{BUCKET}/runs/{job.id}"))


def settled(store: JobStore, settings: Settings) -> None:
    settler = Settler(store, settings)
    settler.settle(store.unsettled())
    settler.close(60)


def test_each_run_has_a_place_of_its_own(tmp_path: Path) -> None:
    assert place_of("s3://box/x/", None, "j_1", "a-s0").url == "s3://box/x/j_1/a-s0"
    folder = RunFolder(tmp_path)
    assert begin_at(folder, None).all == ()
    assert not folder.elsewhere.exists()
    one, two = (Place(url=f"s3://box/{name}") for name in "ab")
    begin_at(folder, one)
    assert begin_at(folder, two).all == (two, one), "what it wrote before stays readable"
    assert places(folder).own == two


def test_a_deleted_jobs_checkpoints_go(
    jobs: Jobs, store: JobStore, settings: Settings, s3: int
) -> None:
    job, other = ended(jobs, store), ended(jobs, store)
    for one in (job, other):
        trained(s3, settings, one)
    jobs.delete(ANA, job.id)
    settled(store, settings)
    assert left(s3, job) == []
    assert not settings.folders.job(job.id).root.exists()
    assert len(left(s3, other)) == 2


def test_what_cannot_be_removed_is_told(
    jobs: Jobs, store: JobStore, settings: Settings, s3: int
) -> None:
    job = ended(jobs, store)
    trained(s3, settings, job)
    Secrets(settings).remove("bucket")
    jobs.delete(ANA, job.id)
    settled(store, settings)
    (event,) = [event for event in store.events(job.id) if event.verb == LEFT]
    assert event.message is not None
    assert event.message.startswith(f"{URL}/{job.id}/run stays: there is no secret 'bucket'")
    assert not settings.folders.job(job.id).root.exists()
    assert len(left(s3, job)) == 2


def test_a_folder_of_a_file_system_that_is_not_here_is_told(
    jobs: Jobs, store: JobStore, settings: Settings, tmp_path: Path
) -> None:
    """As of one that the nodes have mounted, and the API has not."""
    job = ended(jobs, store)
    top = tmp_path / "mounted" / "saved"
    begin_at(
        settings.folders.job(job.id).run("run"), place := place_of(str(top), None, job.id, "run")
    )
    with pytest.raises(DataError, match="on this machine"):
        place.sizes(settings)
    jobs.delete(ANA, job.id)
    settled(store, settings)
    (event,) = [event for event in store.events(job.id) if event.verb == LEFT]
    assert event.message == f"{top}/{job.id}/run stays: there is no {top} on this machine"


@pytest.mark.parametrize(("scheme", "package"), [("gs", "gcsfs"), ("az", "adlfs")])
def test_a_package_that_is_missing_is_named(
    scheme: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError, match=rf"{scheme}:// is not installed .* install '{package}'"):
        remote.Remote(f"{scheme}://box/x", {})


def test_a_store_that_is_away_is_asked_again(
    jobs: Jobs, store: JobStore, settings: Settings, s3: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "TRIES", 1)
    job = ended(jobs, store)
    trained(s3, settings, job)
    known = Secrets(settings).value("bucket")
    away = {
        **OPTIONS,
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    Secrets(settings).set("bucket", json.dumps(away))
    jobs.delete(ANA, job.id)
    settled(store, settings)
    assert settings.folders.job(job.id).root.exists()
    Secrets(settings).set("bucket", known)
    settled(store, settings)
    assert left(s3, job) == []
    assert not settings.folders.job(job.id).root.exists()


def test_adopted_ones_stay_until_nobody_names_them(
    jobs: Jobs, store: JobStore, settings: Settings, s3: int
) -> None:
    first = ended(jobs, store)
    trained(s3, settings, first)
    again = store.submit(replace(new_job(), retry_of=first.id)).job
    adopt(again, settings.folders)
    after = settings.folders.job(again.id).run("run")
    assert [place.url for place in places(after).adopted] == [f"{URL}/{first.id}/run"]
    again = finished(store, again)
    trained(s3, settings, again)
    jobs.delete(ANA, first.id)
    settled(store, settings)
    assert not settings.folders.job(first.id).root.exists()
    assert len(left(s3, first)) == 2, "the retry goes on from them"
    jobs.delete(ANA, again.id)
    settled(store, settings)
    assert left(s3, first) == left(s3, again) == []


def test_retention_takes_them_too(
    jobs: Jobs, store: JobStore, settings: Settings, s3: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ended(jobs, store)
    folder = trained(s3, settings, job)
    write_atomic(folder.checkpoints / "step-00000001" / "state.pt", "one")

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:
            return datetime.now(UTC) + timedelta(days=31)

    monkeypatch.setattr(retention, "datetime", Later)
    policy = Retention(store, settings)
    due = policy.due()
    assert [(item.kind, item.bytes, item.urls) for item in due] == [
        ("checkpoints", 3, ()), ("checkpoints", 10, (f"{URL}/{job.id}/run",)),
    ]  # fmt: skip
    policy.apply(due)
    assert left(s3, job) == []
    assert not folder.checkpoints.exists()
    assert not folder.elsewhere.exists()
    assert Retention(store, settings).due() == []
    assert store.get(job.id).state is State.FAILED


@pytest.mark.parametrize(
    ("told", "field", "why"),
    [
        ({"url": "https://box/x"}, "checkpoint.url", "can be written, no others"),
        ({"url": "s3://box/{0..3}"}, "checkpoint.url", "give one place"),
        ({"url": "s3:///"}, "checkpoint.url", "give a bucket or a folder"),
        ({"url": "s3://box//x"}, "checkpoint.url", "without //"),
        ({"url": "gs://box/x/../y/"}, "checkpoint.url", "without //"),
        ({"url": "saved"}, "checkpoint.url", "give an absolute path"),
        ({"url": "~/saved"}, "checkpoint.url", "give an absolute path"),
        ({"url": "file://saved"}, "checkpoint.url", "give an absolute path"),
        ({"storage": SECRET}, "checkpoint.storage", "which is not given"),
        ({"url": "s3://box", "storage": "key"}, "checkpoint.storage", "pattern"),
    ],
)
def test_places_that_are_none_are_refused(told: dict[str, str], field: str, why: str) -> None:
    assert why in problems(small(checkpoint=told))[field]


@pytest.mark.parametrize("url", ["s3://box", "s3://box/x/", "/saved/../x", "file:///saved"])
def test_places_that_are_some(url: str) -> None:
    assert run(checkpoint={"url": url}).checkpoint.url == url


def test_what_the_lab_does_not_allow_is_refused_at_the_submit(
    jobs: Jobs, settings: Settings, store: JobStore
) -> None:
    asked = run_spec(checkpoint={"url": "s3://ana:word@box/x", "storage": "secret://none"})
    with pytest.raises(ValueError, match="2 problem") as refused:
        jobs.submit(ANA, asked)
    assert "checkpoint.url: a URL of s3 with credentials in it" in str(refused.value)
    assert "checkpoint.storage: there is no secret 'none'" in str(refused.value)
    assert "word" not in str(refused.value)
    rooted = settings.model_copy(update={"data_roots": (Path("/data"),), "data_schemes": ("file",)})
    for url, why in (("/tmp/x", "must lie below /data"), ("s3://box/x", "no others")):
        with pytest.raises(ValueError, match=why):
            Jobs(store, rooted).submit(ANA, run_spec(checkpoint={"url": url}))


def test_where_they_lie_changes_no_weight() -> None:
    here, there = run(), run(checkpoint={"url": "s3://box/x"})
    assert here.run_digest({}) == there.run_digest({})
    assert here.digest() != there.digest()
