"""A lab in one file, and back."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from stoplab_platform.backup import MANIFEST, backup, restore
from stoplab_platform.errors import SettingsError
from stoplab_platform.extras import Extra
from stoplab_platform.files import write_atomic
from stoplab_platform.jobs.models import Role
from stoplab_platform.jobs.states import State
from stoplab_platform.ledger import Cell, Ledger
from stoplab_platform.paths import Home
from stoplab_platform.secret_store import Secrets
from stoplab_platform.settings import Settings
from support_jobs import running_lab, trainer
from support_store import lab_settings, new_job, open_store, wait_for


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "backups" / "lab.tar"


def names(path: Path) -> set[str]:
    with tarfile.open(path) as tar:
        return set(tar.getnames())


def begun(home: Path) -> Settings:
    """A lab with one job and one token."""
    settings = lab_settings(home)
    with open_store(settings.database) as store:
        store.submit(new_job(id="j_one"))
        store.create_token("t", owner="ana", project="default", role=Role.ADMIN, secret="s" * 40)
    return settings


def test_a_round_trip_while_a_job_runs(
    home: Path, target: Path, tmp_path: Path, mlflow_uri: str
) -> None:
    """The restored lab goes on with the job from what it had saved."""
    with running_lab(home, trainer(300), tracking_uri=mlflow_uri) as lab:
        job = lab.submit()
        Ledger(lab.folder(job)).plan([Cell(id="a-s0", index=0, arm="a", seed=0)])
        wait_for(lambda: lab.steps(job) > 20, "some steps", 60)
        manifest = backup(lab.settings, target)
        assert lab.job(job).state is State.RUNNING
    assert target.stat().st_mode & 0o777 == 0o600
    folder = f"jobs/{job.id}"
    assert {"stoplab.db", f"{folder}/spec.yaml", f"{folder}/steps"} <= manifest["files"].keys()
    of_processes = {f"{folder}/{name}" for name in ("owner.json", "heartbeat.json", "attempts/1")}
    assert not of_processes & manifest["files"].keys()
    root = tmp_path / "restored"
    assert restore(target, root) == manifest
    saved = int((Home(root).job(job.id).root / "steps").read_text())
    assert saved >= 20
    with running_lab(root, trainer(saved + 10), tracking_uri=mlflow_uri) as lab:
        done = lab.wait(job, State.SUCCEEDED)
        assert done.attempt == 2
        assert f"attempt 2 from {saved}" in lab.log(job)
        assert [cell.id for cell in Ledger(lab.folder(job)).cells()] == ["a-s0"]


def test_extras_only_when_asked(home: Path, target: Path) -> None:
    settings = begun(home)
    job = settings.folders.job("j_one")
    run = job.run("run")
    asked = {
        Extra.CHECKPOINTS: run.checkpoints / "step-00000001" / "state.pt",
        Extra.LOGS: job.driver_log,
        Extra.TOKENS: settings.folders.token_file,
        Extra.SECRETS: settings.folders.secrets("default") / "word",
    }
    always = (run.summary, run.artifacts / "masks.png", job.comparison, job.cells / "a.json")
    never = (job.tune / "x", job.owner, run.root / "ray" / "x", settings.folders.lab)
    for file in (*asked.values(), *always, *never):
        write_atomic(file, "x")
    Secrets(settings).set("word", "x")

    def held() -> set[Path]:
        return {home / name for name in names(target)} & {*asked.values(), *always, *never}

    backup(settings, target)
    assert held() == set(always)
    for extra, file in asked.items():
        backup(settings, target, [extra])
        assert held() == {*always, file}


def test_a_line_that_is_being_written_is_left_out(home: Path, target: Path, tmp_path: Path) -> None:
    settings = begun(home)
    spool = settings.folders.job("j_one").run("run").spool
    write_atomic(spool, '{"a": 1}\n{"b": 2}\n{"c"')
    backup(settings, target)
    restore(target, tmp_path / "new")
    restored = Home(tmp_path / "new").job("j_one").run("run").spool
    assert restored.read_text() == '{"a": 1}\n{"b": 2}\n'


def test_databases_are_copied_in_the_middle_of_a_write(
    home: Path, target: Path, tmp_path: Path
) -> None:
    settings = begun(home)
    writer = sqlite3.connect(settings.folders.database, isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("UPDATE jobs SET name = 'unsaved'")
    backup(settings, target)
    writer.execute("ROLLBACK")
    writer.close()
    restore(target, tmp_path / "new")
    with open_store(lab_settings(tmp_path / "new").database) as store:
        assert store.get("j_one").name == "bar"
        assert store.principal("s" * 40) is not None


class TestRefusals:
    def test_a_home_that_holds_something(self, home: Path, target: Path) -> None:
        backup(begun(home), target)
        with pytest.raises(SettingsError, match="not empty"):
            restore(target, home)

    @pytest.mark.parametrize(
        ("harm", "words"),
        [
            (lambda data: data.replace(b"kind: pretrain", b"kind: pretraim"), "broken at 1 files"),
            (lambda data: data[: len(data) // 2], "no whole backup"),
            (lambda data: b"no tar", "no whole backup"),
            (lambda data: data.replace(b'"format": 1', b'"format": 2'), "format 2, not 1"),
        ],
    )
    def test_a_broken_file(
        self, home: Path, target: Path, tmp_path: Path, harm: Callable[[bytes], bytes], words: str
    ) -> None:
        settings = begun(home)
        write_atomic(settings.folders.job("j_one").spec, "kind: pretrain\n")
        backup(settings, target)
        target.write_bytes(harm(target.read_bytes()))
        with pytest.raises(SettingsError, match=words):
            restore(target, tmp_path / "new")
        assert not (tmp_path / "new").exists()
        assert list(tmp_path.glob(".new*")) == []

    def test_a_member_that_leads_out(self, target: Path, tmp_path: Path) -> None:
        target.parent.mkdir()
        (tmp_path / "evil").write_text("x")
        (tmp_path / MANIFEST).write_text(json.dumps({"format": 1, "files": {}}))
        with tarfile.open(target, "w") as tar:
            tar.add(tmp_path / "evil", "../../evil")
            tar.add(tmp_path / MANIFEST, MANIFEST)
        with pytest.raises(SettingsError, match="no whole backup"):
            restore(target, tmp_path / "deep" / "new")

    def test_a_backup_of_newer_code(self, home: Path, target: Path, tmp_path: Path) -> None:
        settings = begun(home)
        engine = create_engine(settings.database)
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        engine.dispose()
        backup(settings, target)
        with pytest.raises(SettingsError, match="9999"):
            restore(target, tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_a_database_elsewhere(self, home: Path, target: Path) -> None:
        settings = lab_settings(home, database_url="postgresql+psycopg://host/lab")
        with pytest.raises(SettingsError, match="pg_dump"):
            backup(settings, target)
        assert not target.exists()
        assert backup(settings, target, database=False)["files"] == {}
