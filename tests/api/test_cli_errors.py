"""What a person sees when something is wrong: the reason, the next step, and an exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from stoplab_api.bodies import JobBody
from stoplab_api.cli import completing
from stoplab_api.cli.main import app
from stoplab_api.cli.watching import progress_line, why
from stoplab_platform.files import write_json
from stoplab_platform.jobs.states import State
from support_api import SPEC, Api, running_api, secret
from support_lines import scripted

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def api(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with running_api(home) as running:
        monkeypatch.setenv("STOPLAB_API_URL", running.url)
        monkeypatch.setenv("STOPLAB_TOKEN", secret("ana"))
        yield running


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stoplab_api.exchange.PAUSES_S", ())


def stoplab(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(code: int, *words: object) -> tuple[str, str]:
    """The error and the next step, which programs are told in the same words."""
    people, programs = stoplab(*words), stoplab(*words, "--json")
    assert people.exit_code == programs.exit_code == code, people.output
    assert people.stdout == ""
    assert "Traceback" not in people.output
    error, _, step = people.stderr.partition("\nnext: ")
    assert json.loads(programs.stdout).get("next_step", "") == step.strip()
    return error.strip(), step.strip()


class TestNextSteps:
    def test_nobody_answers(self, hasty: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STOPLAB_API_URL", NOBODY)
        error, step = refused(1, "jobs", "list")
        assert f"{NOBODY} does not answer" in error
        assert "stoplab up" in step

    def test_an_address_that_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STOPLAB_API_URL", "localhost:8800")
        error, _ = refused(2, "jobs", "list")
        assert "'localhost:8800'" in error

    def test_a_wrong_token(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STOPLAB_TOKEN", "stl_of_nobody_at_all")
        error, step = refused(1, "jobs", "list")
        assert "unknown, expired or revoked" in error
        assert "stoplab tokens create" in step
        assert "of_nobody" not in error + step

    def test_a_token_file_that_cannot_be_read(
        self, api: Api, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("STOPLAB_TOKEN")
        (home / "tokens" / "local").mkdir(parents=True)
        error, _ = refused(2, "jobs", "list")
        assert "cannot be read" in error

    def test_not_yours(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        job = api.submitted()["id"]
        monkeypatch.setenv("STOPLAB_TOKEN", secret("bob"))
        error, step = refused(1, "jobs", "cancel", job)
        assert "is ana's" in error
        assert "administrator" in step
        assert "role" in refused(1, "tokens", "list")[1]

    @pytest.mark.parametrize("job", ["j_none", "../tokens", "ü"])
    def test_no_such_job(self, api: Api, job: str) -> None:
        _, step = refused(1, "jobs", "show", job)
        assert "stoplab jobs list" in step

    def test_no_comparison_yet(self, api: Api) -> None:
        job = api.submitted()["id"]
        error, _ = refused(1, "jobs", "comparison", job)
        assert job in error

    def test_not_in_this_state(self, api: Api) -> None:
        job = api.submitted()["id"]
        api.moved(job, State.FAILED)
        error, step = refused(1, "jobs", "pause", job)
        assert "is FAILED" in error
        assert f"`stoplab jobs retry {job}`" in step

    def test_a_key_of_another_request(self, api: Api, tmp_path: Path) -> None:
        spec = tmp_path / "spec.yaml"
        spec.write_text(yaml.safe_dump(SPEC))
        assert stoplab("submit", spec, "--idempotency-key", "k").exit_code == 0
        words = ("submit", spec, "--idempotency-key", "k", "--priority", 3)
        assert "another --idempotency-key" in refused(2, *words)[1]

    def test_an_odd_filter(self, api: Api) -> None:
        error, _ = refused(2, "jobs", "list", "--state", "sleeping")
        assert "?state" in error
        assert "QUEUED" in error

    @pytest.mark.parametrize(
        ("status", "problem", "words"),
        [
            (429, {"code": "rate-limited", "detail": "40 a minute"}, "wait 90 s"),
            (412, {"code": "version-mismatch", "detail": "at version 3"}, "look at it again"),
            (428, {"code": "precondition-required", "detail": "none"}, "the server's version"),
            (500, {"code": "internal", "detail": "not carried out"}, "under r_1"),
            (503, {"code": "database-unavailable", "detail": "gone"}, "stoplab doctor"),
            (409, {"code": "conflict", "detail": "moved"}, "look at it again"),
        ],
    )  # fmt: skip
    def test_other_refusals(
        self, hasty: None, monkeypatch: pytest.MonkeyPatch, status: int,
        problem: dict[str, str], words: str,
    ) -> None:  # fmt: skip
        whole = {"type": "x", "title": "No", "status": status, "instance": "/v1/jobs",
                 "request_id": "r_1", "errors": [], **problem}  # fmt: skip
        with scripted((status, {"Retry-After": "90"}, json.dumps(whole))) as (url, _):
            monkeypatch.setenv("STOPLAB_API_URL", url)
            error, step = refused(1, "jobs", "list")
        assert problem["detail"] in error
        assert words in step

    @pytest.mark.parametrize("status", [200, 404])
    def test_another_server(self, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
        with scripted((status, {}, "<html>")) as (url, _):
            monkeypatch.setenv("STOPLAB_API_URL", url)
            assert "STOPLAB_API_URL" in refused(1, "jobs", "list")[1]


class TestInput:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("submit", "none.yaml"), "none.yaml cannot be read"),
            (("jobs", "show", "j_1"), "no lab runs"),
            (("jobs", "extend", "j_1"), "nothing to add"),
            (("jobs", "extend", "j_1", "--seeds", "some"), "give whole numbers"),
            (("jobs", "limits", "j_1"), "nothing to change"),
            (("jobs", "limits", "j_1", "--trials", "many"), "'many' is no number"),
            (("jobs", "list", "--label", "x"), "is no label"),
            (("jobs", "logs", "j_1", "--tail", "-1"), "greater than or equal to 0"),
            (("spec", "schema", "odd"), "'odd' is not one of"),
            (("jobs", "nap"), "No such command 'nap'"),
        ],
    )
    def test_every_mistake_is_said(self, words: tuple[str, ...], said: str) -> None:
        result = stoplab(*words)
        assert result.exit_code == (1 if said == "no lab runs" else 2), result.output
        assert said in " ".join(result.stderr.replace("│", " ").split())
        assert result.stdout == ""

    def test_programs_are_told_too(self) -> None:
        error, _ = refused(2, "jobs", "limits", "j_1")
        assert error.startswith("nothing to change")


def job(**status: Any) -> JobBody:
    plain = {"state": "RUNNING", "reason_code": None, "message": None, "attempt": 1,
             "progress": None, "queue": None, "allowed_actions": [], "history": []}  # fmt: skip
    names = ("id", "kind", "name", "project", "owner", "spec_digest")
    return JobBody.model_validate(
        {
            **dict.fromkeys(names, "x"), "labels": {}, "priority": 0, "spec": {},
            "run_digest": None, "retry_of": None, "extends": None, "limits": {}, "version": 1,
            "created_at": "2026-01-01T00:00:00Z", "started_at": None, "finished_at": None,
            "status": {**plain, **status}, "links": {},
        }
    )  # fmt: skip


class TestProgress:
    def test_how_far_and_how_fast(self) -> None:
        progress = {"step": 120, "steps": 900, "epoch": 2, "eta_s": 75.4, "samples_per_s": 812.4}
        assert progress_line(job(progress=progress)) == (
            "x  RUNNING  120/900 steps  812 samples/s  about 1:15 to go"
        )

    def test_why_it_is_where_it_is(self) -> None:
        waits = job(state="QUEUED", queue={"position": 2, "reason": "8 CPUs are in use"})
        assert why(waits) == "2. in the queue: 8 CPUs are in use"
        again = job(state="RECOVERING", reason_code="OOM", attempt=2)
        assert "RECOVERING (OOM, attempt 2)" in progress_line(again)
        assert why(again) == "OOM"

    def test_what_is_wrong_with_a_run_that_goes_on(self, api: Api) -> None:
        job_id = api.submitted()["id"]
        api.moved(job_id, State.RUNNING)
        progress = {"step": 3, "steps": 9, "epoch": 0, "eta_s": 1.0, "samples_per_s": 1.5,
                    "warning": "the features collapsed: …"}  # fmt: skip
        write_json(api.folder(job_id).run("run").progress, progress)
        assert "warning   the features collapsed: …" in stoplab("jobs", "show", job_id).stdout

    def test_watching_a_job_that_has_ended(self, api: Api) -> None:
        failed = api.submitted()["id"]
        api.moved(failed, State.FAILED)
        result = stoplab("jobs", "watch", failed)
        assert result.exit_code == 1
        assert result.stdout.strip() == f"{failed} FAILED"
        assert f"stoplab jobs logs {failed}" in result.stderr


class TestCompletion:
    @pytest.mark.parametrize(
        ("line", "offers"),
        [("stoplab jobs res", {"resume"}), ("stoplab jobs list --kind sw", {"sweep"})],
    )
    def test_the_command_answers_the_shell(
        self, line: str, offers: set[str], tmp_path: Path
    ) -> None:
        command = Path(sys.executable).with_name("stoplab")
        told = subprocess.run(
            [command], capture_output=True, text=True, check=True, cwd=tmp_path,
            env={**os.environ, "_STOPLAB_COMPLETE": "complete_bash", "COMP_WORDS": line,
                 "COMP_CWORD": str(len(line.split()) - 1)},
        )  # fmt: skip
        assert set(told.stdout.split()) == offers

    def test_job_ids(self, api: Api) -> None:
        first, second = api.submitted()["id"], api.submitted()["id"]
        assert {name for name, _ in completing.job_ids("")} == {first, second}
        assert completing.job_ids(first) == [(first, "QUEUED pretrain tiny")]
        assert completing.job_ids("tiny") == [], "a name is no id"

    def test_token_ids(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        assert completing.token_ids("") == [], "a submitter may not see them"
        monkeypatch.setenv("STOPLAB_TOKEN", secret("root"))
        assert "ana of ana" in [text for _, text in completing.token_ids("t_")]

    def test_nobody_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert completing.job_ids("") == []
        monkeypatch.setenv("STOPLAB_API_URL", NOBODY)
        assert completing.job_ids("") == []

    def test_states_and_kinds(self) -> None:
        assert completing.states("RUN") == ["RUNNING"]
        assert completing.states("pa") == ["paused"]
        assert completing.kinds("p") == ["pretrain"]
        assert "PRUNED" in completing.cell_states("")

    def test_spec_files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        here = tmp_path / "here"
        (here / "runs").mkdir(parents=True)
        monkeypatch.chdir(here)
        for name in ("runs/b.yml", "a.yaml", "notes.txt", ".hidden.yaml"):
            (here / name).write_text("")
        assert completing.spec_files("") == ["a.yaml", "runs/"]
        assert completing.spec_files("runs/") == ["runs/b.yml"]
        assert completing.spec_files("none/") == []
