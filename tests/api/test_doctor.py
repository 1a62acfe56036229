"""Each test breaks one thing, and sees the finding and its cure."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from stoplab_api.cli.main import app
from stoplab_api.doctor import machine, packages, services, storage
from stoplab_api.doctor.finding import Finding, clock
from stoplab_platform.files import write_json
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.paths import Home
from stoplab_platform.settings import Settings
from support_api import NoRunner, running_api, secret
from support_lines import scripted
from support_mlflow import MlflowServer


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading torch takes seconds; one test does it."""
    monkeypatch.setattr(packages, "LOAD", "print('fine')")


def examined(code: int = 0) -> dict[str, dict[str, Any]]:
    """What the command finds, by name."""
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == code, result.output
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


def only_wrong(findings: Iterable[Finding], name: str) -> Finding:
    """The one thing that is wrong, which has this name, and a cure."""
    (wrong,) = [finding for finding in findings if not finding.ok]
    assert wrong.name == name
    assert wrong.cure
    return wrong


def test_a_home_without_a_lab(home: Path) -> None:
    found = examined()
    names = {"python", "disk", "home", "stoplab", "ray", "torch", "tested versions", "database"}
    assert names | {"ports", "lab", "mlflow", "torch and torchvision"} <= found.keys()
    assert all(check["ok"] for check in found.values())
    assert list(home.iterdir()) == [home / "cache"], "it has made nothing"


def test_for_people(home: Path) -> None:
    token = home / "tokens" / "local"
    token.parent.mkdir()
    token.write_text("secret-word")
    token.chmod(0o644)
    said = CliRunner().invoke(app, ["doctor"])
    assert said.exit_code == 1
    assert "WRONG token local" in said.stdout
    assert f"mend: others can read it: chmod 600 {token}" in said.stdout
    assert "1 of " in said.stdout
    assert "secret-word" not in said.stdout


class TestMachine:
    def test_a_full_disk(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "DISK_BYTES", 2**60)
        found = only_wrong(machine.machine(Home(home)), "disk")
        assert "STOPLAB_HOME" in str(found.cure)

    def test_little_shared_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "OBJECT_STORE_BYTES", 2**60)
        found = only_wrong([machine.shared_memory(tmp_path)], "shared memory")
        assert "--shm-size" in str(found.cure)

    def test_a_home_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        found = only_wrong([machine.file_system(tmp_path / "file" / "home")], "home")
        assert "cannot be written to" in found.detail

    def test_locks_that_lock_nothing(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "FileLock", lambda *_, **__: nullcontext())
        found = only_wrong([machine.file_system(home)], "home")
        assert "gives a lock to two at once" in found.detail
        assert "local disk" in str(found.cure)
        assert list(home.iterdir()) == [home / "cache"], "it leaves nothing"

    def test_renames_that_replace_nothing(
        self, home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Path, "replace", lambda self, target: target)
        assert "renaming" in only_wrong([machine.file_system(home)], "home").detail


class TestPackages:
    def test_one_that_is_missing_or_too_old(self) -> None:
        wanted = [Requirement("numpy>=99"), Requirement("nonesuch>=2"), Requirement("typer>=0.1")]
        old, missing = list(packages.fits(wanted))
        assert (old.name, old.cure) == ("numpy", "pip install 'numpy>=99'")
        assert version("numpy") in old.detail
        assert (missing.name, missing.ok) == ("nonesuch", False)

    def test_an_extra_that_nobody_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(packages.EXTRAS, "train", "nonesuch")
        found = {finding.name: finding for finding in packages.packages()}
        assert found["extra train"].ok
        assert "stoplab[train]" in found["extra train"].detail

    def test_a_torchvision_of_another_torch(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("torch", "torchvision"):
            (tmp_path / f"{name}.py").write_text("")
        (tmp_path / "torchvision.py").write_text(
            "raise RuntimeError('operator torchvision::nms does not exist')"
        )
        monkeypatch.setattr(packages, "LOAD", "import torch, torchvision")
        path = os.environ.get("PYTHONPATH", "")
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{path}")
        found = only_wrong([packages.pair()], "torch and torchvision")
        assert "torchvision::nms" in found.detail
        assert "one index" in str(found.cure)

    @pytest.mark.slow
    def test_this_pair_loads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.undo()
        found = packages.pair()
        assert found.ok, found.detail
        assert version("torchvision") in found.detail

    def test_other_versions_than_were_tested(self, tmp_path: Path) -> None:
        pins = tmp_path / "constraints.txt"
        pins.write_text(f"# tested\nnumpy==1.0\ntyper=={version('typer')}\nnonesuch==1\n")
        told = packages.tested(pins)
        assert told.ok, "what fits may differ"
        assert told.detail == f"1 differ: numpy {version('numpy')} (1.0)"


class TestDatabase:
    @pytest.fixture
    def settings(self, home: Path) -> Settings:
        settings = Settings()
        store = JobStore(settings.database)
        store.migrate()
        store.close()
        return settings

    def test_all_well(self, settings: Settings) -> None:
        found = list(storage.storage(settings))
        assert [finding.name for finding in found] == ["database", "database's clock"]
        assert all(finding.ok for finding in found)

    def revise(self, settings: Settings, revision: str) -> None:
        with sqlite3.connect(settings.folders.database) as connection:
            connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        connection.close()

    def test_newer_than_this_code(self, settings: Settings) -> None:
        self.revise(settings, "9999")
        found = only_wrong(storage.storage(settings), "database")
        assert "9999" in found.detail
        assert "older than the database" in str(found.cure)

    def test_older_than_this_code(self, settings: Settings) -> None:
        self.revise(settings, "0001")
        assert "stoplab up" in str(only_wrong(storage.storage(settings), "database").cure)

    def test_no_database_at_all(self, settings: Settings) -> None:
        settings.folders.database.write_bytes(b"x" * 5000)
        found = only_wrong(storage.storage(settings), "database")
        assert "not a database" in found.detail

    def test_one_that_takes_no_writes(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("stoplab_platform.jobs.engines.BUSY_TIMEOUT_S", 0)
        holder = sqlite3.connect(settings.folders.database, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        found = only_wrong(storage.storage(settings), "database")
        holder.close()
        assert "locked" in found.detail
        assert "yours to write" in str(found.cure)

    def test_on_a_network_file_system(
        self, settings: Settings, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mounts = [SimpleNamespace(mountpoint="/", fstype="ext4"),
                  SimpleNamespace(mountpoint=str(settings.home), fstype="nfs4")]  # fmt: skip
        monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
        found = only_wrong(storage.storage(settings), "database's disk")
        assert "STOPLAB_DATABASE_URL" in str(found.cure)

    @pytest.mark.parametrize("url", ["odd", "oracle+nonesuch://h/d"])
    def test_a_url_that_is_none(self, home: Path, url: str) -> None:
        found = only_wrong(storage.storage(Settings(database_url=url)), "database")
        assert "STOPLAB_DATABASE_URL" in str(found.cure)


class TestClock:
    def test_it_agrees(self) -> None:
        assert clock("clock", 0.4).detail == "agrees"

    def test_it_is_off(self) -> None:
        found = only_wrong([clock("clock of api", -61.0)], "clock of api")
        assert found.detail == "61.0 s behind of this machine's"
        assert "NTP" in str(found.cure)

    def test_by_the_date_that_a_server_sends(self) -> None:
        date = {"Date": "Wed, 21 Oct 2015 07:28:00 GMT"}
        with scripted((200, date, version("mlflow"))) as (url, _):
            found = only_wrong(services.mlflow(url), "clock of mlflow")
        assert "behind" in found.detail


class TestApi:
    def test_all_well(self, home: Path) -> None:
        with running_api(home) as api:
            found = list(services.api(api.url, secret("ana"), "STOPLAB_TOKEN"))
        assert [finding.name for finding in found] == ["api", "token", "clock of api"]
        assert all(finding.ok for finding in found)
        assert found[1].detail == "ana, submitter in project default"

    def test_nobody_there(self) -> None:
        found = only_wrong(services.api("http://127.0.0.1:9", None, "x"), "api")
        assert "stoplab up" in str(found.cure)

    def test_somebody_else_there(self) -> None:
        with scripted((200, {}, "<html>")) as (url, _):
            assert "another server" in str(only_wrong(services.api(url, None, "x"), "api").cure)

    @pytest.mark.parametrize("token", ["stl_unknown", None])
    def test_no_good_token(self, home: Path, token: str | None) -> None:
        with running_api(home) as api:
            found = only_wrong(services.api(api.url, token, "STOPLAB_TOKEN"), "token")
        assert "stoplab tokens create" in str(found.cure)
        assert "stl_unknown" not in found.detail

    def test_one_that_is_not_ready(self, home: Path) -> None:
        with running_api(home, runner=NoRunner()) as api:
            found = only_wrong(services.api(api.url, secret("ana"), "x"), "api")
        assert "the cluster does not answer" in found.detail

    def test_the_environment_names_it(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with running_api(home) as api:
            monkeypatch.setenv("STOPLAB_API_URL", api.url)
            monkeypatch.setenv("STOPLAB_TOKEN", "stl_unknown")
            found = examined(code=1)
        assert found["api"]["ok"]
        assert "STOPLAB_TOKEN is unknown" in found["token"]["detail"]


class TestRay:
    def asked(self, home: Path, status: int, text: str) -> list[Finding]:
        token = home / "ray-token"
        token.write_text("good")
        with scripted((status, {}, text)) as (url, _):
            return list(services.ray(url, token))

    def test_all_well(self, home: Path) -> None:
        (found,) = self.asked(home, 200, json.dumps({"ray_version": version("ray")}))
        assert found.ok

    def test_another_version(self, home: Path) -> None:
        found = only_wrong(self.asked(home, 200, '{"ray_version": "2.0.0"}'), "ray")
        assert found.cure == "install the same on both sides: pip install 'ray==2.0.0'"

    def test_another_token(self, home: Path) -> None:
        found = only_wrong(self.asked(home, 401, ""), "ray")
        assert "RAY_AUTH_TOKEN_PATH" in str(found.cure)

    def test_nobody_there(self, home: Path) -> None:
        found = only_wrong(services.ray("http://127.0.0.1:9", home / "none"), "ray")
        assert "RAY_ADDRESS" in str(found.cure)

    def test_no_dashboard(self, home: Path) -> None:
        (found,) = services.ray("127.0.0.1:6379", home)
        assert found.ok
        assert "without Ray" in found.detail


class TestMlflow:
    @pytest.mark.slow
    def test_a_real_one_and_its_host_check(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MLFLOW_SERVER_ALLOWED_HOSTS", "lab.example")
        server = MlflowServer(tmp_path)
        server.start()
        try:
            found = only_wrong(services.mlflow(server.uri), "mlflow")
        finally:
            server.kill()
        assert "--allowed-hosts" in str(found.cure)

    def test_another_version(self) -> None:
        with scripted((200, {}, "2.0.0")) as (url, _):
            assert "mlflow==2.0.0" in str(only_wrong(services.mlflow(url), "mlflow").cure)

    def test_one_that_does_not_know_its_name(self) -> None:
        own = (200, {}, version("mlflow"))
        with scripted(own, (403, {}, "Invalid Host header")) as (url, asked):
            found = only_wrong(services.mlflow(url), "mlflow")
        assert "/api/2.0/mlflow/" in asked[1], "its version is told to everybody"
        host = url.removeprefix("http://")
        assert str(found.cure) == f"start it with `--allowed-hosts` that names {host}"

    def test_nobody_there(self) -> None:
        found = only_wrong(services.mlflow("http://127.0.0.1:9"), "mlflow")
        assert "MLFLOW_TRACKING_URI" in str(found.cure)


def test_a_shell_that_means_another_lab(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(home / "lab.json", {"ports": {"api": 3, "mlflow": 2, "ray": 1}, "pids": {}})
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    found = examined(code=1)
    assert {name for name, check in found.items() if not check["ok"]} == {
        "lab ray", "lab mlflow", "lab api", "environment", "ray"
    }  # fmt: skip
    assert "127.0.0.1:9" in found["environment"]["detail"]
    assert "stoplab up" in found["lab ray"]["cure"]
