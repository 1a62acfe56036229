"""Shards as they should not be: each gives what docs/data.md promises."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stoplab_platform.errors import DataError
from stoplab_platform.specs.data import EvalDataSpec
from stoplab_trainers.data.build import main as build
from stoplab_trainers.data.decode import BadImage, decode
from stoplab_trainers.data.index import read_index
from stoplab_trainers.data.jpeg import MOST_PIXELS
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.data.verify import main as verify
from stoplab_trainers.evals.splits import load_splits
from support_shards import encoded, picture, shard, tar

IMAGE = encoded(picture(1))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def verified(capsys: pytest.CaptureFixture[str]) -> Any:
    """Problems that `verify` finds, as text, and its exit code."""

    def look(place: Path | str, *words: str) -> tuple[str, int]:
        capsys.readouterr()
        code = verify([str(place), *words, "--json"])
        told = json.loads(capsys.readouterr().out)
        return "\n".join(one["problem"] for one in told["problems"]), int(code)

    return look


def listed(path: Path) -> Path:
    assert build(["--index", str(path.parent), "--json"]) == 0
    return path


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        (
            "cut",
            lambda p: p.write_bytes(shard(p, range(6)).read_bytes()[:9000]),
            "(cut short|no readable tar)",
        ),
        ("empty file", lambda p: p.write_bytes(b""), "no readable tar"),
        ("empty tar", lambda p: tar(p, {}), "holds no sample"),
        ("no tar", lambda p: p.write_bytes(b"<html>" * 500), "no readable tar"),
        ("twice", lambda p: _twice(p), r"the member 'a\.png' is there twice"),
        (
            "apart",
            lambda p: tar(p, {"a.png": IMAGE, "b.png": IMAGE, "a.cls": b"1"}),
            "the members of 'a' do not lie side by side",
        ),
        ("no image", lambda p: tar(p, {"a.cls": b"1", "b.png": IMAGE}), "'a' has no image"),
        ("joined", lambda p: p.write_bytes(shard(p, [0]).read_bytes() * 2), "another tar begins"),
        ("no text", lambda p: tar(p, {"a\udcff.png": IMAGE}), "is no text"),
    ],
)
def test_shards_that_are_refused(
    name: str, write: Any, message: str, tmp_path: Path, cache: Path, verified: Any
) -> None:
    path = tmp_path / "x.tar"
    write(path)
    with pytest.raises(DataError, match=rf"x\.tar.*{message}"):
        ShardSet.open(str(path), cache)
    found, code = verified(path)
    assert code == 1, name
    assert "x.tar" in found


def _twice(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("a.png", "a.cls", "a.png"):
            member = tarfile.TarInfo(name)
            member.size = len(IMAGE)
            archive.addfile(member, io.BytesIO(IMAGE))


def test_a_listed_shard_that_is_cut_is_refused_at_once(
    tmp_path: Path, cache: Path, verified: Any
) -> None:
    path = listed(shard(tmp_path / "a.tar", range(6)))
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(DataError, match=r"a\.tar has 4096 bytes, and its index\.json says"):
        ShardSet.open(str(path), cache)
    assert verified(tmp_path)[1] == 1


def test_a_wrong_checksum_is_found_by_verify_and_other_contents_by_reading(
    tmp_path: Path, cache: Path, verified: Any
) -> None:
    path = listed(shard(tmp_path / "a.tar", range(6)))
    data = bytearray(path.read_bytes())
    index = read_index(path)
    data[-1] ^= 1  # after the last member: no sample is touched
    path.write_bytes(data)
    assert ShardSet.open(str(path), cache).read(0) == encoded(picture(0))
    found, code = verified(tmp_path)
    assert (code, "its sha256 is" in found) == (1, True)
    data[int(index.offsets[0]) + 60] ^= 1
    path.write_bytes(data)
    shards = ShardSet.open(str(path), cache)
    with pytest.raises(DataError, match=r"a\.tar does not hold what its index\.json says"):
        shards.read(0)


def test_an_index_that_is_none_is_passed_over(tmp_path: Path, cache: Path) -> None:
    path = shard(tmp_path / "a.tar", range(6))
    for text in ("{", "[]", '{"version": 7}', '{"shards": [{"name": "a.tar"}]}'):
        (tmp_path / "index.json").write_text(text)
        assert ShardSet.open(str(path), cache).counts == (6,)


@pytest.mark.parametrize("index", [True, False])
def test_a_shard_that_may_not_be_read(
    index: bool, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shard(tmp_path / "a.tar", range(6))
    if index:
        listed(path)
    opened = Path.open

    def guarded(file: Path, *words: Any, **named: Any) -> Any:
        if file == path:
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, *words, **named)

    monkeypatch.setattr(Path, "open", guarded)
    with pytest.raises(DataError, match=r"a\.tar cannot be read: Permission denied"):
        ShardSet.open(str(path), cache).read(0)


def test_a_listed_shard_that_is_gone(
    tmp_path: Path, cache: Path, verified: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(tmp_path / "b.tar", range(6, 9))
    listed(shard(tmp_path / "a.tar", range(6)))
    (tmp_path / "a.tar").unlink()
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in (tmp_path, f"file://{tmp_path}", "~", "~/*.tar", f"{tmp_path}/[ab].tar"):
        found, code = verified(place)
        assert (code, found) == (1, "its index.json lists it, and it is gone")
    assert verified(tmp_path / "[b-z].tar") == ("", 0)
    assert ShardSet.open(str(tmp_path), cache).counts == (3,)


@pytest.mark.parametrize("name", ["../up.png", "/etc/abs.png", "a/../../b.png"])
def test_names_that_lead_out_are_only_names(
    name: str, tmp_path: Path, cache: Path, verified: Any
) -> None:
    (tmp_path / "in").mkdir()
    path = tar(tmp_path / "in" / "a.tar", {name: IMAGE})
    shards = ShardSet.open(str(path), cache)
    assert shards.read(0) == IMAGE
    assert sorted(p.name for p in tmp_path.iterdir() if p != cache) == ["home", "in", "mlflow.db"]
    found, code = verified(path)
    assert code == 1
    assert "leads out of the folder" in found


def test_links_are_passed_over_and_told(tmp_path: Path, cache: Path, verified: Any) -> None:
    path = shard(tmp_path / "a.tar", range(3))
    with tarfile.open(path, "a") as archive:
        for name, kind in (("b.png", tarfile.LNKTYPE), ("c.png", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "s0000.png"
            archive.addfile(member)
    assert len(ShardSet.open(str(path), cache)) == 3
    found, code = verified(path)
    assert code == 1
    assert "'b.png' is a link" in found
    assert "'c.png' is a link" in found


def test_the_same_key_in_two_shards(tmp_path: Path, cache: Path, verified: Any) -> None:
    for name in ("a.tar", "b.tar"):
        shard(tmp_path / name, range(3))
    assert len(ShardSet.open(str(tmp_path), cache)) == 6
    found, code = verified(tmp_path)
    assert code == 1
    assert found.count("is in") == 3


def test_no_label_is_told_where_labels_are_needed(tmp_path: Path, cache: Path) -> None:
    path = shard(tmp_path / "a.tar", range(6), labels=False)
    assert len(ShardSet.open(str(path), cache)) == 6
    data = EvalDataSpec(train=str(path), test=str(path))
    with pytest.raises(DataError, match=r"evaluation needs labels, and sample 's0000'"):
        load_splits(data, 16, cache)


def bomb(side: int) -> bytes:
    """A PNG of side x side black pixels in few bytes: rows are packed by far."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])  # one grey bit a pixel
    rows = zlib.compress(bytes((1 + -(-side // 8)) * side), 9)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs(tmp_path: Path, verified: Any) -> None:
    photo = bomb(3464)  # 12 megapixels
    assert len(photo) < 3000
    assert decode(photo).shape == (3464, 3464, 3)
    side = int(np.sqrt(MOST_PIXELS)) + 1
    with pytest.raises(BadImage, match=f"{side}x{side} pixels: more than {MOST_PIXELS}"):
        decode(bomb(side))
    with pytest.raises(BadImage):
        decode(bomb(20_000))
    path = tar(tmp_path / "a.tar", {"a.png": IMAGE, "b.png": bomb(side)})
    assert verified(path) == ("", 0)
    found, code = verified(path, "--images")
    assert (code, "sample 'b'" in found) == (1, True)


def test_any_broken_bytes_are_a_bad_image_and_nothing_else() -> None:
    random = np.random.default_rng(0)
    for kind in ("png", "jpeg", "webp", "gif", "bmp", "tiff", "ppm"):
        whole = encoded(picture(2), kind)
        for _ in range(40):
            data = bytearray(whole)
            for place in random.integers(0, min(len(data), 200), 4):
                data[place] = random.integers(0, 256)
            with suppress(BadImage):
                assert decode(bytes(data)).shape[2] == 3


def test_any_broken_tar_is_refused_and_nothing_else(tmp_path: Path) -> None:
    whole = shard(tmp_path / "a.tar", range(3)).read_bytes()
    random = np.random.default_rng(1)
    for _ in range(150):
        data = bytearray(whole)
        for place in random.integers(0, len(data), 3):
            data[place // 512 * 512 + place % 160] = random.integers(0, 256)
        (tmp_path / "b.tar").write_bytes(data)
        with suppress(DataError):
            assert len(read_index(tmp_path / "b.tar").keys) >= 1
