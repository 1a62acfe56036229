"""What a project may hold at once."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from stoplab_platform import settle
from stoplab_platform.admission import Admission, Claim, demand, told_limits
from stoplab_platform.errors import SettingsError, SpecError
from stoplab_platform.files import read_json
from stoplab_platform.jobs.models import Principal, Role
from stoplab_platform.jobs.states import State
from stoplab_platform.quotas import Quota
from stoplab_platform.resources import Resources
from stoplab_platform.service import Jobs
from stoplab_platform.settings import Settings
from support_jobs import running_lab, trainer
from support_store import ADMIN, compare_spec, lab_settings, open_store, run_spec

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TEN = Resources(10, 10)
QUOTAS = {"vision": Quota(gpus=8), "small": Quota(cpus=2, jobs=1), "*": Quota(gpus=1)}
ZOE = Principal("zoe", "elsewhere", Role.SUBMITTER)


def quota(project: str) -> Quota:
    return QUOTAS.get(project, QUOTAS["*"])


def claim(name: str, project: str, gpus: float = 0, cpus: float = 1, age_s: float = 0) -> Claim:
    return Claim(name, 0, NOW - timedelta(seconds=age_s), Resources(cpus, gpus), project)


class TestAdmission:
    def test_who_holds_its_quota_waits_and_is_told(self) -> None:
        running = [claim("r", "vision", gpus=6)]
        admitted, waiting = Admission(running, TEN, NOW, quota).admit(
            [claim("a", "vision", gpus=4)]
        )
        assert admitted == []
        assert waiting["a"].reason == (
            "needs 1 CPUs and 4 GPUs; project vision holds 6 of its 8 GPUs"
        )
        admitted, _ = Admission(running, TEN, NOW, quota).admit([claim("a", "vision", gpus=2)])
        assert admitted == ["a"]

    def test_others_pass_it_however_long_it_waits(self) -> None:
        kept_out = claim("a", "vision", gpus=4, age_s=99999)
        other = claim("b", "else", gpus=1)
        running = [claim("r", "vision", gpus=6)]
        admitted, waiting = Admission(running, TEN, NOW, quota).admit([kept_out, other])
        assert admitted == ["b"]
        assert waiting["a"].position == 2

    def test_what_is_admitted_counts(self) -> None:
        jobs = [claim(name, "vision", gpus=4, age_s=-n) for n, name in enumerate("abc")]
        admitted, waiting = Admission([], TEN * 9, NOW, quota).admit(jobs)
        assert admitted == ["a", "b"]
        assert "holds 8 of its 8 GPUs" in waiting["c"].reason

    def test_cpus_and_jobs(self) -> None:
        jobs = [claim("a", "small", cpus=2), claim("b", "small", cpus=1, age_s=-1)]
        admitted, waiting = Admission([], TEN, NOW, quota).admit(jobs)
        assert admitted == ["a"]
        assert waiting["b"].reason.endswith(
            "project small holds 2 of its 2 CPUs and 1 of its 1 jobs"
        )

    def test_every_other_project_has_one_each(self) -> None:
        jobs = [claim("a", "x", gpus=1), claim("b", "y", gpus=1), claim("c", "x", gpus=1, age_s=-1)]
        admitted, waiting = Admission([], TEN, NOW, quota).admit(jobs)
        assert admitted == ["a", "b"]
        assert "project x holds 1 of its 1 GPUs" in waiting["c"].reason

    def test_what_needs_no_gpu_is_not_kept_out_by_them(self) -> None:
        running = [claim("r", "vision", gpus=8)]
        assert Admission(running, TEN, NOW, quota).admit([claim("a", "vision")])[0] == ["a"]


class TestStudies:
    def test_reserve_what_the_quota_lets_them(self) -> None:
        spec = compare_spec(seeds=tuple(range(20)))
        assert demand(spec, Resources(64, 0), Quota(cpus=5)) == Resources(5, 0)
        assert demand(spec, Resources(3, 0), Quota(cpus=5)) == Resources(3, 0)

    def test_are_told_so(self, home: Path) -> None:
        settings = lab_settings(home, capacity_cpus=64, quotas={"default": {"cpus": 2}})
        with open_store(settings.database) as store:
            jobs = Jobs(store, settings)
            job = jobs.submit(ADMIN, compare_spec(seeds=tuple(range(9)))).job
            assert told_limits(job, settings) == {"max_concurrent": 2}
            fewer = jobs.edit(ADMIN, job.id, job.version, limits={"max_concurrent": 1})
            assert told_limits(fewer, settings) == {"max_concurrent": 1}
            more = jobs.edit(ADMIN, job.id, fewer.version, limits={"max_concurrent": 50})
            assert told_limits(more, settings) == {"max_concurrent": 2}
            started = store.move(more, State.STARTING, actor="x", attempt=1)
            jobs.edit(ADMIN, job.id, started.version, limits={"max_concurrent": None})
            assert read_json(settings.folders.job(job.id).limits) == {"max_concurrent": 2}
            assert told_limits(job, lab_settings(home)) == {}


class TestSubmit:
    def test_what_never_fits_is_refused(self, home: Path) -> None:
        settings = lab_settings(home, quotas={"elsewhere": {"cpus": 2, "gpus": 0}})
        spec = run_spec(compute={"workers": 4, "gpus_per_worker": 1}, optim={"batch_size": 40})
        with open_store(settings.database) as store:
            jobs = Jobs(store, settings)
            with pytest.raises(SpecError) as caught:
                jobs.submit(ZOE, spec)
            jobs.submit(ADMIN, spec)
        told = [(problem.dotted, problem.message) for problem in caught.value.problems]
        assert told == [
            ("compute.workers", "4 workers need 4 CPUs; project elsewhere may hold 2 at once"),
            ("compute.workers", "4 workers need 4 GPUs; project elsewhere may hold 0 at once"),
        ]


class TestSettings:
    def test_are_json(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STOPLAB_QUOTAS", '{"vision": {"gpus": 8}, "*": {"jobs": 2}}')
        settings = Settings()
        assert settings.quota("vision") == Quota(gpus=8)
        assert settings.quota("anything") == Quota(jobs=2)
        monkeypatch.setenv("STOPLAB_QUOTAS", '{"vision": {"gpus": 8}}')
        assert Settings().quota("anything") == Quota()

    @pytest.mark.parametrize(
        "text", ["vision=8", '{"vision": 8}', '{"vision": {"gpu": 8}}', '{"*": {"jobs": 0}}', "[]"]
    )
    def test_nonsense_is_refused_by_name(self, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
        monkeypatch.setenv("STOPLAB_QUOTAS", text)
        with pytest.raises(SettingsError, match="STOPLAB_QUOTAS"):
            Settings()


def test_a_project_at_its_quota_lets_others_start(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle.tracking, "finish_runs", lambda *_: 0)
    with running_lab(home, trainer(9999), quotas={"default": {"jobs": 1}}) as lab:
        first = lab.submit("first")
        lab.wait(first, State.RUNNING)
        second = lab.submit("second")
        other = lab.jobs.submit(ZOE, run_spec("other")).job
        lab.wait(other, State.RUNNING)
        told = lab.jobs.view(lab.job(second))["status"]["queue"]
        assert "project default holds 1 of its 1 jobs" in told["reason"]
        lab.jobs.cancel(ADMIN, first.id)
        lab.wait(second, State.RUNNING)
