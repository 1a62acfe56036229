"""What a run may open, looked at where it opens it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stoplab_platform.errors import CheckpointError, DataError, SettingsError
from stoplab_platform.references import permitted
from stoplab_platform.secret_store import Secrets
from stoplab_platform.settings import Settings
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.evals.low_shot import read_list
from support_shards import shard


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder that specs may name."""
    path = tmp_path / "root"
    path.mkdir()
    monkeypatch.setenv("STOPLAB_DATA_ROOTS", str(path))
    return path


def test_shards_below_the_root_and_embedded_ones(root: Path, cache: Path) -> None:
    shard(root / "a.tar", range(3))
    assert len(ShardSet.open(str(root / "a.tar"), cache)) == 3
    assert len(ShardSet.open("digits/test", cache)) == 540


@pytest.mark.parametrize("form", ["{root}/link.tar", "{root}/*.tar", "file://{root}/link.tar"])
def test_a_link_that_leads_out_is_not_followed(
    root: Path, tmp_path: Path, cache: Path, form: str
) -> None:
    (root / "link.tar").symlink_to(shard(tmp_path / "outside.tar", range(3)))
    with pytest.raises(DataError, match="outside of what STOPLAB_DATA_ROOTS allows"):
        ShardSet.open(form.format(root=root), cache)


def test_a_list_of_samples(root: Path, tmp_path: Path) -> None:
    (root / "few.txt").write_text("s0000\n")
    assert read_list(root / "few.txt") == "s0000\n"
    (tmp_path / "few.txt").write_text("s0000\n")
    (root / "link.txt").symlink_to(tmp_path / "few.txt")
    with pytest.raises(DataError, match="outside of what STOPLAB_DATA_ROOTS allows"):
        read_list(root / "link.txt")


def test_weights(root: Path, tmp_path: Path) -> None:
    assert permitted(str(root / "step-1")) == root / "step-1"
    (root / "link").symlink_to(tmp_path)
    for place in (tmp_path / "step-1", root / "link" / "step-1"):
        with pytest.raises(CheckpointError, match="STOPLAB_DATA_ROOTS"):
            permitted(str(place))


def test_schemes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOPLAB_DATA_SCHEMES", "s3,https")
    with pytest.raises(DataError, match="URLs of s3, https can be read"):
        ShardSet.open("memory://sets/a.tar", cache)


def test_options_that_cannot_be_had(cache: Path) -> None:
    Secrets(Settings()).set("text", "a password")
    with pytest.raises(SettingsError, match="no JSON object"):
        ShardSet.open("memory://sets/none.tar", cache, "secret://text")
    with pytest.raises(SettingsError, match="no secret 'other'"):
        ShardSet.open("memory://sets/none.tar", cache, "secret://other")


def test_the_cache_notes_what_was_used(cache: Path) -> None:
    (first, *_) = _shards(cache)
    before = first.stat()
    os.utime(first, ns=(0, before.st_mtime_ns))
    _shards(cache)
    after = first.stat()
    assert after.st_atime > before.st_mtime
    assert after.st_mtime_ns == before.st_mtime_ns, "its index stays good"


def _shards(cache: Path) -> list[Path]:
    ShardSet.open("digits/test", cache)
    return sorted((cache / "embedded").rglob("*.tar"))[:1]
