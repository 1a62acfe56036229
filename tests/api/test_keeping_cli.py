"""Commands of who keeps the house: tokens, secrets, prune, backup, restore."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from stoplab_api.cli.main import app
from stoplab_platform.jobs.states import State
from stoplab_platform.jobs.store import JobStore
from support_api import Api, running_api, secret


def stoplab(*words: object, text: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], input=text)


def document(*words: object, code: int = 0) -> Any:
    """The one JSON document of a command."""
    result = stoplab(*words, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


@pytest.fixture
def api(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """A server that the environment names, for its administrator."""
    with running_api(home) as running:
        monkeypatch.setenv("STOPLAB_API_URL", running.url)
        monkeypatch.setenv("STOPLAB_TOKEN", secret("root"))
        yield running


class TestTokens:
    def test_rotate_and_scopes(self, api: Api) -> None:
        made = document("tokens", "create", "ci", "--owner", "carl", "--scope", "jobs:read")
        assert made["scopes"] == ["jobs:read"]
        fresh = document("tokens", "rotate", made["id"])
        assert fresh["id"] == made["id"]
        assert api.store.principal(made["secret"]) is None
        assert api.store.principal(fresh["secret"]) is not None
        assert "jobs:read" in stoplab("tokens", "list").stdout

    def test_a_project_begins_with_its_first_token(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("STOPLAB_TOKEN", "of nobody")
        words = ("tokens", "create", "first", "--owner", "mia", "--role", "admin")
        made = document(*words, "--project", "vision")
        assert made["project"] == "vision"
        monkeypatch.setenv("STOPLAB_TOKEN", made["secret"])
        other = document("tokens", "create", "second", "--owner", "max")
        assert other["project"] == "vision"
        assert [one["owner"] for one in document("tokens", "list")["items"]] == ["mia", "max"]

    @pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "a b"])
    def test_what_cannot_name_a_project(self, api: Api, name: str) -> None:
        told = document("tokens", "create", "x", "--owner", "m", "--project", name, code=2)
        assert "cannot name a project" in told["error"]

    def test_a_home_without_a_database(self, home: Path) -> None:
        told = document("tokens", "create", "x", "--owner", "m", "--project", "p", code=2)
        assert "stoplab up" in told["error"]
        assert not list(home.glob("*.db"))


class TestSecrets:
    def test_set_list_remove(self, home: Path) -> None:
        made = stoplab("secrets", "set", "bucket", text="{}\n")
        assert made.exit_code == 0, made.output
        assert (home / "secrets" / "default" / "bucket").read_text() == "{}"
        assert document("secrets", "list")["items"] == [{"name": "bucket", "project": "default"}]
        assert document("secrets", "list", "--project", "vision")["items"] == []
        assert document("secrets", "remove", "bucket")["removed"] is True
        assert document("secrets", "remove", "bucket")["removed"] is False

    def test_refused(self, home: Path) -> None:
        assert stoplab("secrets", "set", "a/b", text="x").exit_code == 2
        assert stoplab("secrets", "set", "empty", text="\n").exit_code == 2


class TestPrune:
    def test_it_says_first_and_then_does(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STOPLAB_KEEP_LOGS_DAYS", "0")
        job = api.submitted()["id"]
        api.moved(job, State.SUCCEEDED)
        api.write_log(job, b"x" * 2000)
        said = document("prune", "--dry-run")
        assert (said["dry_run"], said["bytes"]) == (True, 2000)
        assert [(item["kind"], item["job_id"]) for item in said["items"]] == [("logs", job)]
        assert api.folder(job).driver_log.exists()
        assert "2 kB are freed" in stoplab("prune").stdout
        assert not api.folder(job).driver_log.exists()
        assert document("prune")["items"] == []


def test_backup_and_restore(api: Api, tmp_path: Path) -> None:
    job = api.submitted()["id"]
    made = document("backup", tmp_path / "lab.tar", "--with", "tokens")
    assert made["path"] == str(tmp_path / "lab.tar")
    back = document("restore", tmp_path / "lab.tar", "--home", tmp_path / "new")
    assert {**back, "path": made["path"]} == made
    store = JobStore(f"sqlite:///{tmp_path / 'new' / 'stoplab.db'}")
    assert store.get(job).name == "tiny"
    store.close()
    again = document("restore", tmp_path / "lab.tar", "--home", tmp_path / "new", code=2)
    assert "not empty" in again["error"]


def test_events(api: Api) -> None:
    job = api.submitted()["id"]
    (told,) = document("events", "--verb", "submit")["items"]
    assert (told["job_id"], told["actor"]) == (job, "ana")
    plain = stoplab("events", "--limit", 2)
    assert "token.create" in plain.stdout
    assert "more: --after 2" in plain.stderr
