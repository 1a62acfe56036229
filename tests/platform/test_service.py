"""What people may ask of jobs, and what they are shown."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoplab_platform.admission import QueueInfo
from stoplab_platform.errors import Conflict, Forbidden, IllegalMove, KeyReused, NotFound, SpecError
from stoplab_platform.files import read_json, write_json
from stoplab_platform.handoff import read_stop
from stoplab_platform.jobs.models import IdempotencyRecord, Intent, Job, JobQuery
from stoplab_platform.jobs.states import ReasonCode, State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.service import Jobs
from stoplab_platform.settings import Settings
from support_store import (
    ADMIN,
    ANA,
    BEN,
    STRANGER,
    VIEWER,
    compare_spec,
    finished,
    lab_settings,
    open_store,
    run_spec,
    running,
)

KEY = IdempotencyRecord("k", "a request")


@pytest.fixture
def settings(home: Path) -> Settings:
    return lab_settings(home, "http://127.0.0.1:5000", capacity_cpus=4)


@pytest.fixture
def store(settings: Settings) -> Iterator[JobStore]:
    with open_store(settings.database) as store:
        yield store


@pytest.fixture
def woken() -> list[int]:
    return []


@pytest.fixture
def jobs(store: JobStore, settings: Settings, woken: list[int]) -> Jobs:
    return Jobs(store, settings, wake=lambda: woken.append(1))


@pytest.fixture
def job(jobs: Jobs) -> Job:
    return jobs.submit(ANA, run_spec(), labels={"bar": "1"}, priority=2).job


class TestSubmit:
    def test_belongs_to_who_asks(self, jobs: Jobs, job: Job, woken: list[int]) -> None:
        assert (job.owner, job.project, job.kind, job.name) == ("ana", "default", "pretrain", "bar")
        assert job.spec_digest == run_spec().digest()
        assert woken

    def test_key(self, jobs: Jobs) -> None:
        assert jobs.replayed(ANA, KEY) is jobs.replayed(ANA, None) is None
        first = jobs.submit(ANA, run_spec(), record=KEY)
        assert jobs.submit(ANA, run_spec(), record=KEY).job == first.job
        again = jobs.replayed(ANA, KEY)
        assert again is not None
        assert (again.job, again.replayed) == (first.job, True)
        other = IdempotencyRecord(KEY.key, "another request")
        with pytest.raises(KeyReused):
            jobs.submit(ANA, run_spec(), record=other)
        with pytest.raises(KeyReused):
            jobs.replayed(ANA, other)
        assert jobs.replayed(BEN, other) is None

    def test_what_never_fits_is_refused(self, jobs: Jobs, store: JobStore) -> None:
        large = run_spec(compute={"workers": 8}, optim={"batch_size": 64})
        with pytest.raises(SpecError, match=r"compute\.workers"):
            jobs.submit(ANA, large)
        assert store.list(JobQuery()).items == ()

    def test_an_undeclared_capacity_refuses_nothing(self, store: JobStore, home: Path) -> None:
        large = run_spec(compute={"workers": 512}, optim={"batch_size": 512})
        Jobs(store, lab_settings(home)).submit(ANA, large)

    def test_viewers_submit_nothing(self, jobs: Jobs) -> None:
        with pytest.raises(Forbidden):
            jobs.submit(VIEWER, run_spec())


class TestWho:
    ASKS = ("cancel", "pause", "resume", "retry", "delete")

    def test_members_see(self, jobs: Jobs, job: Job) -> None:
        for principal in (ANA, BEN, ADMIN, VIEWER):
            assert jobs.get(principal, job.id) == job
            assert jobs.list(principal, JobQuery()).items == (job,)

    @pytest.mark.parametrize("ask", ASKS)
    def test_other_projects_jobs_do_not_exist(self, jobs: Jobs, job: Job, ask: str) -> None:
        with pytest.raises(NotFound):
            getattr(jobs, ask)(STRANGER, job.id)
        with pytest.raises(NotFound):
            jobs.get(STRANGER, job.id)
        assert jobs.list(STRANGER, JobQuery(project="default")).items == ()

    @pytest.mark.parametrize("ask", ASKS)
    @pytest.mark.parametrize("principal", [BEN, VIEWER])
    def test_others_change_nothing(self, jobs: Jobs, job: Job, ask: str, principal: object) -> None:
        with pytest.raises(Forbidden):
            getattr(jobs, ask)(principal, job.id)

    def test_admins_do(self, jobs: Jobs, job: Job) -> None:
        assert jobs.cancel(ADMIN, job.id).state is State.CANCELLED


class TestStopping:
    def test_a_queued_job_ends_at_once(self, jobs: Jobs, job: Job, woken: list[int]) -> None:
        woken.clear()
        assert jobs.cancel(ANA, job.id).state is State.CANCELLED
        assert woken

    def test_a_queued_job_pauses_at_once_and_comes_back(self, jobs: Jobs, job: Job) -> None:
        assert jobs.pause(ANA, job.id).state is State.PAUSED
        assert jobs.resume(ANA, job.id).state is State.QUEUED

    def test_a_running_job_is_asked(
        self, jobs: Jobs, store: JobStore, settings: Settings, job: Job
    ) -> None:
        running(store, job)
        folder = settings.folders.job(job.id)
        paused = jobs.pause(ANA, job.id)
        assert (paused.state, paused.intent) == (State.STOPPING, Intent.PAUSED)
        order = read_stop(folder, 1)
        assert order is not None
        assert (order.intent, order.deadline_s) == (Intent.PAUSED, 60)
        cancelled = jobs.cancel(ANA, job.id)  # a pause may become a cancel
        assert cancelled.intent is Intent.CANCELLED
        order = read_stop(folder, 1)
        assert order is not None
        assert (order.intent, order.deadline_s) == (Intent.CANCELLED, 5)
        assert jobs.cancel(ANA, job.id) == cancelled

    def test_the_finished_stay_as_they_are(self, jobs: Jobs, store: JobStore, job: Job) -> None:
        done = finished(store, job)
        assert jobs.cancel(ANA, job.id) == done

    def test_illegal(self, jobs: Jobs, store: JobStore, job: Job) -> None:
        with pytest.raises(IllegalMove, match=r"QUEUED.*cancel, pause") as caught:
            jobs.resume(ANA, job.id)
        assert (caught.value.state, caught.value.allowed) == ("QUEUED", ("cancel", "pause"))
        with pytest.raises(IllegalMove):
            jobs.retry(ANA, job.id)
        finished(store, job)
        with pytest.raises(IllegalMove):
            jobs.pause(ANA, job.id)

    def test_a_move_that_comes_between_is_no_error(
        self, jobs: Jobs, store: JobStore, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        get, looks = store.get, []

        def get_and_move(job_id: str, project: str | None = None) -> Job:
            found = get(job_id, project)
            if not looks:
                looks.append(1)
                running(store, found)
            return found

        monkeypatch.setattr(store, "get", get_and_move)
        assert jobs.cancel(ANA, job.id).state is State.STOPPING


class TestRetryAndEdit:
    def test_retry_is_a_new_job(self, jobs: Jobs, store: JobStore, job: Job) -> None:
        finished(store, job)
        again = jobs.retry(ANA, job.id, record=KEY).job
        assert (again.retry_of, again.state, again.attempt) == (job.id, State.QUEUED, 0)
        assert (again.spec, again.labels, again.priority) == (job.spec, job.labels, job.priority)
        assert jobs.get(ANA, job.id).state is State.FAILED
        assert jobs.retry(ANA, job.id, record=KEY).job == again

    def test_edit_of_what_was_seen(self, jobs: Jobs, job: Job) -> None:
        edited = jobs.edit(ANA, job.id, job.version, labels={"a": "b"}, priority=7)
        assert (edited.labels, edited.priority) == ({"a": "b"}, 7)
        with pytest.raises(Conflict):
            jobs.edit(ANA, job.id, job.version, priority=1)

    def test_extend_is_a_new_job_with_more(self, jobs: Jobs, store: JobStore) -> None:
        first = jobs.submit(ANA, compare_spec(seeds=(0, 1))).job
        with pytest.raises(IllegalMove, match="extend"):
            jobs.extend(ANA, first.id, {"seeds": [2]})
        finished(store, first)
        more = jobs.extend(ANA, first.id, {"seeds": [2]}, record=KEY).job
        assert (more.extends, more.retry_of, more.state) == (first.id, None, State.QUEUED)
        assert more.spec["seeds"] == [0, 1, 2]
        assert jobs.get(ANA, first.id).spec["seeds"] == [0, 1]
        assert jobs.extend(ANA, first.id, {"seeds": [2]}, record=KEY).replayed
        assert "extend" in jobs.view(jobs.get(ANA, first.id))["status"]["allowed_actions"]

    def test_limits_of_a_running_study(
        self, jobs: Jobs, store: JobStore, settings: Settings
    ) -> None:
        job = running(store, jobs.submit(ANA, compare_spec()).job)
        edited = jobs.edit(ANA, job.id, job.version, limits={"max_concurrent": 1})
        edited = jobs.edit(ANA, job.id, edited.version, limits={"wall_hours": 2.0})
        wished = {"max_concurrent": 1, "wall_hours": 2.0}
        assert edited.limits == jobs.view(edited)["limits"] == wished
        assert read_json(settings.folders.job(job.id).limits) == wished
        assert edited.spec == job.spec
        with pytest.raises(SpecError, match=r"limits\.trials"):
            jobs.edit(ANA, job.id, edited.version, limits={"trials": 0})
        ended = store.move(edited, State.FAILED, actor="x")
        with pytest.raises(IllegalMove):
            jobs.edit(ANA, job.id, ended.version, limits={"max_concurrent": 2})

    def test_a_single_run_has_no_limits(self, jobs: Jobs, job: Job) -> None:
        with pytest.raises(SpecError, match="limits"):
            jobs.edit(ANA, job.id, job.version, limits={"max_concurrent": 1})

    def test_a_retry_has_the_limits_as_they_were_changed(self, jobs: Jobs, store: JobStore) -> None:
        job = running(store, jobs.submit(ANA, compare_spec(seeds=(0, 1))).job)
        edited = jobs.edit(ANA, job.id, job.version, limits={"max_concurrent": 1})
        store.move(edited, State.FAILED, actor="x")
        again = jobs.retry(ANA, job.id).job
        assert again.spec["limits"]["max_concurrent"] == 1


class TestView:
    def test_a_queued_job_whole(self, store: JobStore, settings: Settings, job: Job) -> None:
        jobs = Jobs(store, settings, lambda _ids: {job.id: QueueInfo(3, "busy")})
        view = json.loads(json.dumps(jobs.view(job)))
        created = view["created_at"]
        assert created.endswith("Z")
        at = view["status"]["history"][0].pop("at")
        assert at.endswith("Z")
        assert view == {
            "id": job.id, "kind": "pretrain", "name": "bar", "project": "default", "owner": "ana",
            "labels": {"bar": "1"}, "priority": 2, "spec": run_spec().plain(),
            "spec_digest": run_spec().digest(), "run_digest": None, "retry_of": None,
            "extends": None, "limits": {}, "version": 1, "created_at": created, "started_at": None,
            "finished_at": None,
            "status": {
                "state": "QUEUED", "reason_code": None, "message": None, "attempt": 0,
                "progress": None, "queue": {"position": 3, "reason": "busy"},
                "allowed_actions": ["cancel", "pause"],
                "history": [{"state": "QUEUED", "reason_code": None}],
            },
            "links": {
                "self": f"/v1/jobs/{job.id}", "mlflow": None, "logs": f"/v1/jobs/{job.id}/logs",
            },
        }  # fmt: skip

    def test_a_running_job(self, jobs: Jobs, store: JobStore, settings: Settings, job: Job) -> None:
        run = settings.folders.job(job.id).run("run")
        progress = {"step": 1, "steps": 9, "epoch": 0, "eta_s": 1.5, "samples_per_s": 2.0}
        write_json(run.progress, progress)
        write_json(run.spool_sent, {"offset": 1, "run_id": "r1"})
        job = store.move(running(store, job), State.RECOVERING, actor="x",
                         reason_code=ReasonCode.OOM, message="why")  # fmt: skip
        view = jobs.view(job)
        status = view["status"]
        assert (status["state"], status["reason_code"]) == ("RECOVERING", "OOM")
        assert (status["message"], status["queue"]) == ("why", None)
        assert status["progress"] == progress
        states = ["QUEUED", "STARTING", "RUNNING", "RECOVERING"]
        assert [entry["state"] for entry in status["history"]] == states
        assert status["history"][-1]["reason_code"] == "OOM"
        assert view["started_at"].endswith("Z")
        assert view["links"]["mlflow"] == "http://127.0.0.1:5000/#/runs/r1"

    def test_a_study(self, jobs: Jobs, settings: Settings) -> None:
        job = jobs.submit(ANA, compare_spec()).job
        folder = settings.folders.job(job.id)
        write_json(folder.progress, {"step": 1, "steps": 4})
        write_json(folder.tracked, {"run_id": "r2", "experiment_id": "7"})
        view = jobs.view(job)
        assert view["status"]["progress"] == {"step": 1, "steps": 4}
        assert view["links"]["mlflow"] == "http://127.0.0.1:5000/#/experiments/7/runs/r2"

    def test_a_broken_progress_file_breaks_no_view(
        self, jobs: Jobs, settings: Settings, job: Job
    ) -> None:
        run = settings.folders.job(job.id).run("run")
        run.root.mkdir(parents=True)
        run.progress.write_text("{")
        assert jobs.view(job)["status"]["progress"] is None

    def test_a_link_tells_no_password(self, store: JobStore, home: Path, job: Job) -> None:
        settings = lab_settings(home, "http://ml:hunter22@mlflow:5000/")
        write_json(settings.folders.job(job.id).run("run").spool_sent, {"run_id": "r"})
        link = Jobs(store, settings).view(job)["links"]["mlflow"]
        assert link == "http://mlflow:5000/#/runs/r"

    def test_no_link_without_a_server(self, store: JobStore, home: Path, job: Job) -> None:
        settings = lab_settings(home)
        write_json(settings.folders.job(job.id).run("run").spool_sent, {"run_id": "r"})
        assert Jobs(store, settings).view(job)["links"]["mlflow"] is None
