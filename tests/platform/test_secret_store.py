"""Secrets by name, and what a process hides."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from stoplab_platform import logs
from stoplab_platform.errors import SettingsError
from stoplab_platform.redaction import redacted
from stoplab_platform.secret_store import Secrets, references
from stoplab_platform.settings import Settings

VALUE = "correct-horse-battery"


@pytest.fixture
def secrets(home: Path) -> Secrets:
    return Secrets(Settings())


def test_kept_in_a_file_of_its_owner_alone(secrets: Secrets, home: Path) -> None:
    secrets.set("webhook", "first")
    secrets.set("webhook", VALUE)
    assert secrets.names() == ["webhook"]
    assert secrets.value("webhook") == VALUE
    file = home / "secrets" / "default" / "webhook"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert secrets.remove("webhook") is True
    assert secrets.remove("webhook") is False
    assert not secrets.known("webhook")


def test_projects_do_not_share(secrets: Secrets) -> None:
    secrets.set("key", VALUE)
    other = Secrets(Settings(), "vision")
    assert not other.known("key")
    with pytest.raises(SettingsError, match="no secret 'key' in the project vision"):
        other.value("key")


def test_the_environment_where_there_is_no_file(
    secrets: Secrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOPLAB_SECRET_S3_KEY_2", VALUE)
    assert secrets.value("s3-key.2") == VALUE
    secrets.set("s3-key.2", "the file's")
    assert secrets.value("s3-key.2") == "the file's"


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".x", "a b", "x" * 64])
def test_what_cannot_be_a_name(secrets: Secrets, name: str) -> None:
    with pytest.raises(SettingsError, match="cannot name a secret"):
        secrets.set(name, VALUE)


def test_a_project_that_leads_elsewhere(home: Path) -> None:
    with pytest.raises(SettingsError, match="no project's name"):
        Secrets(Settings(), "..")


def test_references_and_where_they_stand() -> None:
    spec = {"data": {"train": "s3://x", "storage": "secret://a"}, "arms": [{"b": "secret://b"}]}
    assert list(references(spec)) == [(("data", "storage"), "a"), (("arms", 0, "b"), "b")]


def test_options_are_an_object(secrets: Secrets) -> None:
    secrets.set("bucket", json.dumps({"key": "a", "client": {"word": "swordfish-1"}}))
    assert secrets.options("secret://bucket")["key"] == "a"
    assert redacted("it said swordfish-1!") == "it said secret://bucket!"
    secrets.set("plain", VALUE)
    with pytest.raises(SettingsError, match="no JSON object") as caught:
        secrets.options("secret://plain")
    assert VALUE not in str(caught.value)


def test_what_was_read_is_shown_no_more(
    secrets: Secrets, capsys: pytest.CaptureFixture[str]
) -> None:
    value = "used-in-this-test-alone"
    secrets.set("word", value)
    assert redacted(value) == value
    assert secrets.plain("secret://word") == value
    assert secrets.plain("as it is") == "as it is"
    logs.to_stdout()
    log = logging.getLogger("stoplab.test")
    try:
        try:
            raise ValueError(f"the server said {value}")
        except ValueError:
            log.exception("asked with %s", value)
    finally:
        root = logging.getLogger("stoplab")
        root.handlers = [one for one in root.handlers if not isinstance(one.formatter, logs.Plain)]
    told = capsys.readouterr().out
    assert value not in told
    assert told.count("secret://word") == 2
