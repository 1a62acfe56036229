"""A new lab's tables and first token."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stoplab_api import bootstrap
from stoplab_platform.errors import SettingsError
from stoplab_platform.jobs.models import Principal, Role
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.settings import Settings

SECRET = "stl_" + "7" * 40


def run(monkeypatch: pytest.MonkeyPatch, file: Path) -> int:
    monkeypatch.setattr(sys, "argv", ["bootstrap", str(file)])
    return bootstrap.main()


def test_a_file_s_token_becomes_an_administrator_s_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "admin_token"
    file.write_text(SECRET + "\n")
    assert [run(monkeypatch, file), run(monkeypatch, file)] == [0, 0]
    said = capsys.readouterr().out
    assert said == "the administrator's token is registered\nthe token was known already\n"
    assert SECRET not in said
    store = JobStore(Settings().database)
    try:
        admin = store.principal(SECRET)
        assert admin is not None
        assert replace(admin, token_id=None) == Principal("admin", "default", Role.ADMIN)
        assert len(store.tokens("default")) == 1
    finally:
        store.close()


def test_a_token_that_could_be_guessed_is_refused() -> None:
    with pytest.raises(SettingsError, match="has 7 characters; give 32 or more"):
        bootstrap.bootstrap(Settings(), "letmein")


def test_a_file_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path / "none") == 1
    assert "none" in capsys.readouterr().err
