"""What the environment says."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoplab_platform.errors import SettingsError
from stoplab_platform.settings import Settings


def test_the_home_is_in_the_working_folder_unless_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STOPLAB_HOME")
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    assert settings.home == tmp_path / ".stoplab"
    monkeypatch.chdir("/")
    assert settings.home == tmp_path / ".stoplab", "a later change of folder moves it not"


def test_a_relative_home_is_made_absolute_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STOPLAB_HOME", "labs/one")
    assert Settings().home == tmp_path / "labs" / "one"


def test_inside_a_ray_job_a_relative_home_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_ID", "01000000")
    monkeypatch.setenv("STOPLAB_HOME", "labs/one")
    with pytest.raises(SettingsError, match="must be absolute"):
        Settings()
    monkeypatch.setenv("STOPLAB_HOME", "/labs/one")
    assert Settings().home == Path("/labs/one")


def test_mlflow_is_in_the_home_unless_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert Settings().tracking_uri == f"sqlite:///{home}/mlflow/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert Settings().tracking_uri == "http://127.0.0.1:5000"


def test_the_database_is_in_the_home_unless_said(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Settings().database == f"sqlite:///{home}/stoplab.db"
    monkeypatch.setenv("STOPLAB_DATABASE_URL", "postgresql://db/stoplab")
    assert Settings().database == "postgresql://db/stoplab"


def test_a_token_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOPLAB_TOKEN", "hush")
    settings = Settings()
    assert settings.token == "hush"
    assert "hush" not in repr(settings)
    assert "hush" not in str(settings)


def test_what_the_supervisor_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOPLAB_JOB_ID", "j_1")
    monkeypatch.setenv("STOPLAB_ATTEMPT", "2")
    assert (Settings().job_id, Settings().attempt) == ("j_1", 2)


def test_what_does_not_fit_is_named_and_no_value_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOPLAB_TOKEN", "hush")
    monkeypatch.setenv("STOPLAB_CAPACITY_CPUS", "many")
    with pytest.raises(SettingsError, match=r"STOPLAB_CAPACITY_CPUS: .*valid number") as refused:
        Settings()
    assert "hush" not in str(refused.value)
