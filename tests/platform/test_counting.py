from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from stoplab_platform.counting import count_images


def shard(path: Path, samples: int, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for number in range(samples):
            for ending in ("jpg", "cls"):
                member = tarfile.TarInfo(f"a/{number:04d}.{ending}")
                member.size = 3
                tar.addfile(member, io.BytesIO(b"abc"))
    return path


def images(urls: str | tuple[str, ...]) -> int | None:
    found = count_images(urls)
    return None if found is None else found.images


def test_an_embedded_set() -> None:
    assert images("digits") == images("digits/train") == 1257


def test_the_first_and_the_last_shard_stand_for_all(tmp_path: Path) -> None:
    for number in range(4):
        shard(tmp_path / f"t-{number:02d}.tar", 3 if number == 3 else 5)
    braces = str(tmp_path / "t-{00..03}.tar")
    assert images(braces) == images(str(tmp_path / "t-*.tar")) == images(str(tmp_path)) == 18
    assert images((braces, str(shard(tmp_path / "more.tar", 7)))) == 27
    found = count_images(braces)
    assert found is not None
    assert found.source == "4 shards like t-00.tar and t-03.tar"


def test_a_packed_shard(tmp_path: Path) -> None:
    assert images(str(shard(tmp_path / "a.tar.gz", 6, "w:gz"))) == 6


@pytest.mark.parametrize("url", ["s3://in1k/a-{000..999}.tar", "pipe:cat x", "/none/a.tar"])
def test_what_is_elsewhere_is_not_counted(url: str) -> None:
    assert images(url) is None


def test_what_is_no_shard_is_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(b"no tar" * 1000)
    assert images(str(path)) is None
    os.mkfifo(tmp_path / "b.tar")
    assert images(str(tmp_path / "b.tar")) is None, "it would be waited for, for ever"
