"""Shards: found, unpacked, indexed once, read by many."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset

from stoplab_platform.errors import DataError
from stoplab_trainers.data import copies, index
from stoplab_trainers.data.cache import DRAFT_S, locked, replacing
from stoplab_trainers.data.pack import write_shard
from stoplab_trainers.data.shards import MOST_OPEN, ShardSet
from support_shards import encoded, members, picture, shard, tar, three_shards


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_a_set_counts_names_labels_and_reads_its_samples(tmp_path: Path, cache: Path) -> None:
    shards = ShardSet.open(three_shards(tmp_path), cache)
    assert shards.counts == (5, 7, 4)
    assert len(shards) == 16
    assert shards.keys == [f"s{n:04d}" for n in range(16)]
    np.testing.assert_array_equal(shards.labels, np.arange(16) % 3)
    assert [shards.read(n) for n in range(16)] == [encoded(picture(n)) for n in range(16)]
    assert shards.name(6) == f"'s0006' in {tmp_path}/part-000001.tar"


@pytest.mark.parametrize("form", ["braces", "pattern", "folder", "list", "url"])
def test_every_way_to_name_shards_gives_the_same_set(
    form: str, tmp_path: Path, cache: Path
) -> None:
    folder = tmp_path / "set [1]"
    folder.mkdir()
    braces = three_shards(folder)
    urls = {
        "braces": braces,
        "pattern": f"{folder}/part-*.tar",
        "folder": str(folder),
        "list": [f"{folder}/part-{n:06d}.tar" for n in range(3)],
        "url": f"file://{braces}",
    }[form]
    assert ShardSet.open(urls, cache).keys == [f"s{n:04d}" for n in range(16)]


def test_webdataset_reads_our_shards_and_we_read_its_own(tmp_path: Path, cache: Path) -> None:
    path = shard(tmp_path / "ours.tar", range(4))
    with path.open("rb") as file:
        theirs = webdataset.tariterators.group_by_keys(
            webdataset.tariterators.tar_file_expander([{"url": str(path), "stream": file}])
        )
        read = [(sample["__key__"], sample["cls"], sample["png"]) for sample in theirs]
    assert read == [(f"s{n:04d}", b"%d" % (n % 3), encoded(picture(n))) for n in range(4)]
    with webdataset.TarWriter(str(tmp_path / "theirs.tar")) as sink:
        for n in range(3):
            sink.write({"__key__": f"a/{n}", "jpg": encoded(picture(n), "jpeg"), "cls": n})
    shards = ShardSet.open(str(tmp_path / "theirs.tar"), cache)
    assert shards.keys == ["a/0", "a/1", "a/2"]
    assert shards.labels is not None
    assert shards.labels.tolist() == [0, 1, 2]
    assert shards.read(2) == encoded(picture(2), "jpeg")


def test_equal_samples_make_equal_bytes(tmp_path: Path) -> None:
    paths = [shard(tmp_path / name, range(3)) for name in ("a.tar", "b.tar")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_fingerprint_is_of_what_the_shards_hold(tmp_path: Path, cache: Path) -> None:
    def fingerprint(name: str, samples: range, **options: object) -> str:
        path = shard(tmp_path / name, samples, **options)  # type: ignore[arg-type]
        return ShardSet.open(str(path), cache).fingerprint

    first = fingerprint("first.tar", range(4))
    assert fingerprint("elsewhere.tar", range(4)) == first
    assert fingerprint("more.tar", range(5)) != first
    assert fingerprint("bare.tar", range(4), labels=False) != first
    with_other_pixels = [(f"s{n:04d}", members(n)) for n in range(3)]
    changed = bytearray(members(3)["png"])
    changed[-20] ^= 1
    with_other_pixels.append(("s0003", {"cls": b"0", "png": bytes(changed)}))
    write_shard(tmp_path / "changed.tar", with_other_pixels)
    assert ShardSet.open(str(tmp_path / "changed.tar"), cache).fingerprint != first


def test_packed_shards_are_the_plain_ones(tmp_path: Path, cache: Path) -> None:
    plain = ShardSet.open(three_shards(tmp_path), cache)
    for path in sorted(tmp_path.glob("*.tar")):
        with gzip.open(f"{path}.gz", "wb") as packed:
            packed.write(path.read_bytes())
    packed_set = ShardSet.open(f"{tmp_path}/part-*.tar.gz", cache)
    assert packed_set.fingerprint == plain.fingerprint
    assert packed_set.read(9) == plain.read(9)
    unpacked = sorted((cache / "unpacked").glob("*.tar"))
    times = [path.stat().st_mtime_ns for path in unpacked]
    ShardSet.open(f"{tmp_path}/part-*.tar.gz", cache)
    assert [path.stat().st_mtime_ns for path in unpacked] == times, "unpacked once"


def test_a_packed_shard_that_is_cut_short_leaves_nothing_behind(
    tmp_path: Path, cache: Path
) -> None:
    whole = gzip.compress(shard(tmp_path / "a.tar", range(4)).read_bytes())
    (tmp_path / "b.tar.gz").write_bytes(whole[:-50])
    with pytest.raises(DataError, match=r"b\.tar\.gz cannot be unpacked"):
        ShardSet.open(str(tmp_path / "b.tar.gz"), cache)
    assert not list(cache.rglob("*.tar"))


def test_what_unpacks_without_end_is_no_shard(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "ROOM", 1 << 20)
    packed = gzip.compress(shard(tmp_path / "a.tar", range(9)).read_bytes() + bytes(64 << 20))
    (tmp_path / "a.tar.gz").write_bytes(packed)
    far = fsspec.filesystem("memory")
    far.pipe("/bomb/a.tar.gz", packed)
    for place in (str(tmp_path / "a.tar.gz"), "memory://bomb/a.tar.gz"):
        with pytest.raises(DataError, match=r"a\.tar\.gz unpacks to more than \d+ bytes"):
            ShardSet.open(place, cache)
    assert not [path for path in cache.rglob("*tar*") if path.suffix != ".lock"]


def test_a_lock_that_leaves_no_file_is_one_lock(tmp_path: Path) -> None:
    count = tmp_path / "count"
    count.write_text("0")

    def add(_: int) -> None:
        with locked(tmp_path / "x", keep=False):
            before = int(count.read_text())
            os.sched_yield()
            count.write_text(str(before + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(400)))
    assert count.read_text() == "400"
    assert not (tmp_path / "x.lock").exists()


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with pytest.raises(OSError, match=r"No space left on device: .*a\.tar"), replacing(path):
        Path("/dev/full").write_bytes(b"x")
    assert not list(tmp_path.glob("*a.tar*"))


@pytest.mark.parametrize(
    "left", ["remote/v1/.a.tar.0123abcd", "checkpoints/1f-2e.pt", "checkpoints/.1f-2e.pt.0123abcd"]
)
def test_what_killed_processes_left_goes_when_the_next_shard_is_fetched(
    left: str, tmp_path: Path, cache: Path
) -> None:
    """Drafts, and copies of checkpoints that were being read."""
    old, young = cache / left, cache / left.replace("1", "3")
    for file in (old, young):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    hour_ago = time.time() - DRAFT_S
    os.utime(old, (hour_ago, hour_ago))
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress(shard(tmp_path / "a.tar", range(4)).read_bytes()))
    ShardSet.open(str(packed), cache)
    assert (old.exists(), young.exists()) == (False, True)


def test_remote_shards_are_copied_once_for_each_version(tmp_path: Path, cache: Path) -> None:
    remote = fsspec.filesystem("memory")
    path = shard(tmp_path / "a.tar", range(4))
    remote.pipe("/sets/a.tar", path.read_bytes())
    remote.pipe("/sets/b.tar.gz", gzip.compress(shard(path, range(4, 6)).read_bytes()))
    shards = ShardSet.open(["memory://sets/a.tar", "memory://sets/b*"], cache)
    assert shards.keys == [f"s{n:04d}" for n in range(6)]
    assert shards.read(5) == encoded(picture(5))
    remote.pipe("/sets/a.tar", shard(path, range(7, 9)).read_bytes())
    assert ShardSet.open("memory://sets/a.tar", cache).keys == ["s0007", "s0008"]


def test_an_index_is_read_once_and_again_when_the_shard_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shard(tmp_path / "a.tar", range(3))
    walked = []
    read_index = index.read_index
    monkeypatch.setattr(index, "read_index", lambda p, n: walked.append(p) or read_index(p, n))
    for _ in range(3):
        assert len(ShardSet.open(str(path), cache)) == 3
    assert walked == [path]
    shard(path, range(5))
    assert len(ShardSet.open(str(path), cache)) == 5
    for kept in (cache / "index").glob("*.npz"):
        kept.write_bytes(kept.read_bytes()[:100])
    assert len(ShardSet.open(str(path), cache)) == 5
    assert len(walked) == 3


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ("{tmp}/none.tar", r"1 of 1 shards do not exist, the first: .*none\.tar"),
        (["{tmp}/real.tar", "{tmp}/gone-{{0..3}}.tar"], r"4 of 5 shards do not exist.*gone-0"),
        ("{tmp}/no*.tar", "matches no shard"),
        ("{tmp}/empty", "matches no shard"),
        ([], "no shards"),
        (["{tmp}/real.tar", "{tmp}/real.tar"], r"real\.tar is named 2 times"),
        ("pipe:cat {tmp}/real.tar", "commands are not run"),
        ("zip://a.tar::memory://b.zip", "chained"),
        ("ftp://host/a.tar", "no others"),
        ("abfs://box/a.tar", "adlfs"),
        ("memory://nothing/a.tar", "does not exist"),
        ("{tmp}/real.tar}}{{", "braces|do not exist"),
        ("{tmp}/{{0..999999999}}.tar", "stands for more than 1000000 shards"),
        ("{tmp}/{{000..999}}/{{0000..9999}}.tar", "stands for more than 1000000 shards"),
        ("digits/val", "splits train, test"),
    ],
)
def test_what_cannot_be_found_is_named(
    urls: str | list[str], message: str, tmp_path: Path, cache: Path
) -> None:
    shard(tmp_path / "real.tar", range(2))
    (tmp_path / "empty").mkdir()
    named = [url.format(tmp=tmp_path) for url in ([urls] if isinstance(urls, str) else urls)]
    with pytest.raises(DataError, match=message):
        ShardSet.open(named[0] if isinstance(urls, str) else named, cache)


def test_only_samples_with_an_image_side_by_side_are_taken(tmp_path: Path, cache: Path) -> None:
    def opened(files: dict[str, bytes]) -> ShardSet:
        return ShardSet.open(str(tar(tmp_path / "x.tar", files)), cache)

    image = encoded(picture(1))
    shards = opened(
        {
            "__meta__.json": b"{}", ".hidden": b"", "README": b"text",
            "a/1.seg.png": b"mask", "a/1.left.png": b"left", "a/1.png": image, "a/1.CLS": b" 7\n",
            "a.b/2.left.PNG": image, "a.b/2.cls": b"cat",
        }
    )  # fmt: skip
    assert shards.keys == ["a/1", "a.b/2"]
    assert shards.read(0) == image
    assert shards.read(1) == image
    assert shards.read_mask(0) == b"mask"
    assert shards.labels is None
    assert index.read_index(tmp_path / "x.tar").labels.tolist() == [7, -1]
    assert shards.unlabelled is not None
    assert "a.b/2" in shards.unlabelled
    with pytest.raises(DataError, match="'b' has no image"):
        opened({"a.png": image, "b.cls": b"1"})
    for names in (["a.png", "a.jpg"], ["a.0001.png", "a.0002.png", "b.png"]):
        with pytest.raises(DataError, match=r"'a' has 2 images \(.*png, .*\); a name up to"):
            opened(dict.fromkeys(names, image))
    with pytest.raises(DataError, match="side by side"):
        opened({"a.png": image, "b.png": image, "a.cls": b"1"})
    with pytest.raises(DataError, match="holds no sample"):
        opened({"README": b"text"})


def test_a_shard_that_is_cut_short_is_refused(tmp_path: Path, cache: Path) -> None:
    whole = shard(tmp_path / "a.tar", range(6)).read_bytes()
    names = tarfile.open(fileobj=io.BytesIO(whole)).getmembers()
    places = {
        "inside an image": names[7].offset_data + 40,
        "inside a header": names[6].offset + 100,
        "between members": names[6].offset,
        "at once": 0,
    }
    for place, size in places.items():
        path = tmp_path / f"cut-{size}.tar"
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"cut short|no readable tar"):
            ShardSet.open(str(path), cache)
        assert place
    broken = bytearray(whole)
    broken[names[4].offset : names[4].offset + 100] = b"\xff" * 100
    (tmp_path / "broken.tar").write_bytes(broken)
    with pytest.raises(DataError, match=f"broken at byte {names[4].offset}"):
        ShardSet.open(str(tmp_path / "broken.tar"), cache)


def test_a_shard_that_shrinks_while_in_use_is_noticed(tmp_path: Path, cache: Path) -> None:
    path = shard(tmp_path / "a.tar", range(6))
    shards = ShardSet.open(str(path), cache)
    os.truncate(path, 2048)
    with pytest.raises(DataError, match=r"a\.tar changed while in use"):
        shards.read(5)


def test_many_threads_read_many_shards_with_few_files_open(tmp_path: Path, cache: Path) -> None:
    count = MOST_OPEN + 40
    png = {n: encoded(picture(n, 4, 4)) for n in range(count)}
    for n in range(count):
        write_shard(tmp_path / f"part-{n:04d}.tar", [(f"s{n}", {"png": png[n]})])
    shards = ShardSet.open(f"{tmp_path}/part-*.tar", cache)
    before = len(os.listdir("/proc/self/fd"))
    wanted = [*range(count)] * 4
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(shards.read, wanted)) == [png[n] for n in wanted]
    assert len(os.listdir("/proc/self/fd")) - before <= MOST_OPEN
    del shards
    assert len(os.listdir("/proc/self/fd")) <= before


AT_ONCE = """
import os, sys
from pathlib import Path
from stoplab_trainers.data.shards import ShardSet
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        shards = ShardSet.open([sys.argv[1], "digits/test"], Path(sys.argv[2]))
        os.write(1, shards.fingerprint.encode() + b"\\n")
        os._exit(0)
    children.append(child)
assert all(os.waitpid(child, 0)[1] == 0 for child in children)
"""


def test_processes_that_come_at_once_do_the_work_once(tmp_path: Path, cache: Path) -> None:
    path = shard(tmp_path / "a.tar", range(20))
    with gzip.open(f"{path}.gz", "wb") as packed:
        packed.write(path.read_bytes())
    command = [sys.executable, "-c", AT_ONCE, f"{path}.gz", str(cache)]
    told = subprocess.run(command, timeout=120, check=True, capture_output=True, text=True).stdout
    assert len(told.split()) == 4
    assert len(set(told.split())) == 1
    assert len(list((cache / "unpacked").glob("*.tar"))) == 1
    assert len(list((cache / "index").glob("*.npz"))) == 3
    left = [path for path in cache.rglob(".*") if path.is_file()]
    assert left == []
