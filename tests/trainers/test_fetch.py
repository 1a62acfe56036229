"""Shards from a real S3 server and from HTTP, through a proxy that fails as it is told."""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stoplab_platform import remote
from stoplab_platform.errors import DataAway, DataError, DataMissing
from stoplab_platform.secret_store import Secrets
from stoplab_platform.settings import Settings
from stoplab_trainers.data.build import main as build
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.data.stats import main as stats
from support_faults import Faults, faulty
from support_s3 import BUCKET, OPTIONS, bucket, http_server
from support_shards import encoded, picture, shard, three_shards

URL = f"s3://{BUCKET}/set/part-{{000000..000002}}.tar"
PART = 8000  # bytes: a shard comes in several parts


@pytest.fixture
def proxy(s3: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """Between us and the S3 server; we ask again at once, and wait a second for an answer."""
    monkeypatch.setattr(remote, "FIRST_S", 0.001)
    monkeypatch.setattr(remote, "PART", PART)
    with faulty(s3) as server:
        limits = {"read_timeout": 1, "connect_timeout": 5, "retries": {"max_attempts": 0}}
        options = {**OPTIONS, "endpoint_url": server.url, "config_kwargs": limits}
        Secrets(Settings()).set("bucket", json.dumps(options))
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def put(s3: int, tmp_path: Path) -> Iterator[Any]:
    """Writes a set of three shards, with its index or without, below `set/` in the bucket."""
    files = bucket(s3)

    def write(*, index: bool = True) -> Path:
        folder = tmp_path / "set"
        folder.mkdir()
        three_shards(folder)
        if index:
            assert build(["--index", str(folder), "--json"]) == 0
        for path in folder.iterdir():
            files.pipe(f"{BUCKET}/set/{path.name}", path.read_bytes())
        return folder

    yield write
    if files.exists(f"{BUCKET}/set"):
        files.rm(f"{BUCKET}/set", recursive=True)


def opened(cache: Path, url: str = URL) -> ShardSet:
    return ShardSet.open(url, cache, "secret://bucket")


def assert_whole(shards: ShardSet) -> None:
    assert [shards.read(n) for n in range(16)] == [encoded(picture(n)) for n in range(16)]


def test_listed_shards_come_when_they_are_read(
    put: Any, proxy: Faults, cache: Path, tmp_path: Path
) -> None:
    folder = put()
    shards = opened(cache)
    assert shards.counts == (5, 7, 4)
    assert shards.fingerprint == ShardSet.open(str(folder), tmp_path / "other").fingerprint
    assert [path for path in proxy.asked if path.endswith(".tar")] == []
    assert shards.read(6) == encoded(picture(6))
    assert {path for path in proxy.asked if path.endswith(".tar")} == {
        f"/{BUCKET}/set/part-000001.tar"
    }
    assert_whole(shards)
    asked = len(proxy.asked)
    assert_whole(opened(cache))
    assert not any(path.endswith(".tar") for path in proxy.asked[asked:]), "fetched once"


def test_others_come_at_once_and_are_looked_into_once(put: Any, proxy: Faults, cache: Path) -> None:
    put(index=False)
    assert_whole(opened(cache, f"s3://{BUCKET}/set/part-*.tar"))
    for copy in (cache / "remote").rglob("*.tar"):
        copy.unlink()
    asked = len(proxy.asked)
    shards = opened(cache)
    assert shards.counts == (5, 7, 4)
    assert not any(path.endswith(".tar") for path in proxy.asked[asked:]), "the index is kept"
    assert_whole(shards)


@pytest.mark.parametrize("fault", [500, 503, 429, "silence", "cut"])
def test_what_may_pass_is_asked_for_again(
    put: Any, proxy: Faults, cache: Path, fault: int | str
) -> None:
    put()
    shards = opened(cache)
    proxy.faults.extend([fault, fault])
    assert_whole(shards)
    assert not proxy.faults, "they happened"


def test_all_faults_in_one_fetch(put: Any, proxy: Faults, cache: Path) -> None:
    put()
    shards = opened(cache)
    proxy.faults.extend([500, "cut", "pass", 503, "pass", "silence", "cut", "pass", 500] * 2)
    assert_whole(shards)
    assert not proxy.faults


def test_a_place_that_never_answers_is_told_to_be_away(
    put: Any, proxy: Faults, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put()
    monkeypatch.setattr(remote, "TRIES", 2)
    shards = opened(cache)
    proxy.faults.extend([503] * 100)
    with pytest.raises(DataAway, match=r"s3://shards/set/part-000000\.tar: .*2 times"):
        shards.read(0)
    assert not list((cache / "remote").rglob("*.tar"))
    proxy.faults.clear()
    assert shards.read(0) == encoded(picture(0)), "and is asked again when it is needed"


def test_what_is_not_there_is_told_at_once(put: Any, proxy: Faults, cache: Path) -> None:
    put()
    with pytest.raises(DataMissing, match=r"part-000009\.tar does not exist"):
        opened(cache, f"s3://{BUCKET}/set/part-000009.tar")
    with pytest.raises(DataMissing, match="matches no shard"):
        opened(cache, f"s3://{BUCKET}/set/none-*.tar")


def test_missing_credentials_are_told_at_once(
    proxy: Faults, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/none")
    Secrets(Settings()).set("bucket", json.dumps({"endpoint_url": proxy.url}))
    with pytest.raises(DataError, match=r"part-000000\.tar cannot be read: .*credentials"):
        opened(cache)


def test_a_wrong_checksum_is_fetched_once_more_and_then_refused(
    put: Any, proxy: Faults, cache: Path, s3: int, caplog: pytest.LogCaptureFixture
) -> None:
    folder = put()
    data = bytearray((folder / "part-000001.tar").read_bytes())
    data[-2000] ^= 1
    bucket(s3).pipe(f"{BUCKET}/set/part-000001.tar", bytes(data))
    shards = opened(cache)
    assert shards.read(0) == encoded(picture(0))
    with pytest.raises(DataError, match=r"part-000001\.tar has the sha256 .* index\.json says"):
        shards.read(5)
    assert caplog.text.count("it is fetched once more") == 1
    assert not list((cache / "remote").rglob("part-000001.tar"))


def test_a_far_shard_that_is_cut_short_is_refused_and_not_waited_for(
    put: Any, proxy: Faults, cache: Path, s3: int, tmp_path: Path
) -> None:
    folder = put()
    size = (folder / "part-000001.tar").stat().st_size
    cut = (folder / "part-000001.tar").read_bytes()[: PART + 1000]
    bucket(s3).pipe(f"{BUCKET}/set/part-000001.tar", cut)
    (folder / "part-000001.tar").write_bytes(cut)
    with http_server(folder) as port:
        far = f"http://127.0.0.1:{port}/part-{{000000..000002}}.tar"
        for shards in (opened(cache), ShardSet.open(far, cache)):
            assert shards.read(0)
            with pytest.raises(
                DataError, match=rf"part-000001\.tar has {len(cut)} bytes, .* says {size}"
            ):
                shards.read(5)


def test_http_without_ranges(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_S", 0.001)
    monkeypatch.setattr(remote, "PART", PART)
    folder = tmp_path / "set"
    folder.mkdir()
    three_shards(folder)
    packed = folder / "part-000001.tar.gz"
    packed.write_bytes(gzip.compress((folder / "part-000001.tar").read_bytes()))
    with http_server(folder) as port, faulty(port) as server:
        names = [f"{server.url}/part-000000.tar", f"{server.url}/part-000001.tar.gz"]
        server.faults.extend([502, "cut"])
        shards = ShardSet.open([*names, f"{server.url}/part-000002.tar"], cache)
        assert_whole(shards)
        assert not server.faults
        with pytest.raises(DataMissing, match=r"gone\.tar does not exist"):
            ShardSet.open(f"{server.url}/gone.tar", cache)


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (503, DataAway, "503.*8 times"),
        (403, DataError, r"part-000000\.tar cannot be read: 403"),
        (404, DataMissing, "does not exist"),
    ],
)
def test_http_tells_why_nothing_is_known_of_a_file(
    answer: int, error: type, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_S", 0.001)
    three_shards(tmp_path)
    with http_server(tmp_path) as port, faulty(port) as server:
        place = remote.Remote(f"{server.url}/part-000000.tar", {})
        server.faults.extend([answer] * 8)
        server.head_faults.extend([answer] * 8)
        with pytest.raises(error, match=words) as raised:
            place.info()
        assert raised.type is error
        with pytest.raises(DataError, match=r"cannot be read: .*unexpected keyword argument 'key'"):
            remote.Remote(f"{server.url}/part-000000.tar", {"key": "of another store"}).info()
        for queue in (server.faults, server.head_faults):
            queue.clear()
            queue.extend([503, 503, 503])
        assert place.info()["size"] == (tmp_path / "part-000000.tar").stat().st_size


def test_what_follows_the_question_mark_is_no_pattern_and_no_place(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_S", 0.001)
    three_shards(tmp_path)
    assert build(["--index", str(tmp_path), "--json"]) == 0
    with http_server(tmp_path) as port, faulty(port) as server:
        server.head_faults.extend([503, 503])
        server.faults.extend([503, 503])
        name = f"{server.url}/part-{{000000..000002}}.tar?signature=a/b=="
        shards = ShardSet.open(name, cache)
        assert [path for path in server.asked if not path.endswith("/index.json")] == []
        server.asked.clear()
        assert stats([name]) == 0
        assert {path.rpartition("/")[2] for path in server.asked} == {"index.json", "index.parquet"}
        assert_whole(shards)


def test_a_shard_of_http_that_is_replaced_is_fetched_again(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "a.tar"
    with http_server(tmp_path) as port:  # of a version it tells the time of change alone
        size = shard(path, range(4)).stat().st_size
        assert ShardSet.open(f"http://127.0.0.1:{port}/a.tar", cache).keys[0] == "s0000"
        os.utime(shard(path, range(4, 8)), (0, 0))
        assert path.stat().st_size == size
        assert ShardSet.open(f"http://127.0.0.1:{port}/a.tar", cache).keys[0] == "s0004"


def test_what_nobody_wants_any_more_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_S", 1000.0)
    monkeypatch.setattr(remote, "LONGEST_S", 1000.0)
    three_shards(tmp_path)
    given_up = threading.Event()
    with http_server(tmp_path) as port, faulty(port) as server:
        parts = remote.Remote(f"{server.url}/part-000000.tar", {}).parts(8000, given_up)
        server.faults.append(503)
        threading.Timer(0.2, given_up.set).start()
        start = time.monotonic()
        with pytest.raises(DataAway):
            next(parts)
    assert time.monotonic() - start < 60
