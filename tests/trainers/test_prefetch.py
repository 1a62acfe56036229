"""Remote shards as the plan needs them, in a cache that may hold no more."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from stoplab_platform.errors import DataAway, DataError
from stoplab_platform.specs.data import DataSpec
from stoplab_trainers.data import copies
from stoplab_trainers.data.build import main as build
from stoplab_trainers.data.loader import AHEAD, Batch, batches
from stoplab_trainers.data.plan import Plan
from stoplab_trainers.data.prefetch import Prefetch
from stoplab_trainers.data.shards import ShardSet
from support_shards import three_shards

COUNTS = (12, 9, 10, 11, 12, 10, 9, 11)
BATCH = 6
URL = "memory://sets/part-{000000..000007}.tar"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight shards with their index, here and in a store far away."""
    path = tmp_path / "set"
    path.mkdir()
    three_shards(path, COUNTS)
    assert build(["--index", str(path), "--json"]) == 0
    far = fsspec.filesystem("memory")
    for file in path.iterdir():
        far.pipe(f"/sets/{file.name}", file.read_bytes())
    return path


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that were fetched, in order."""
    names: list[str] = []
    fetch_once = copies.Fetched._fetch_once

    def noting(self: copies.Fetched, copy: Path, given_up: threading.Event) -> None:
        names.append(self.name.rpartition("/")[2])
        fetch_once(self, copy, given_up)

    monkeypatch.setattr(copies.Fetched, "_fetch_once", noting)
    return names


def made(shards: ShardSet, window: int | None, stop: int, rank: int = 0, world: int = 1):  # type: ignore[no-untyped-def]
    data = DataSpec.model_validate({"train": "x", "image_size": 12})
    plan = Plan(shards.counts, BATCH, 0, window)
    return batches(shards, plan, data, seed=0, rank=rank, world=world, start_step=0, stop_step=stop)


def name(shard: int) -> str:
    return f"part-{shard:06d}.tar"


@pytest.mark.parametrize("window", [None, 1, 2, 3])
def test_far_and_near_sets_give_the_same_batches(
    folder: Path, tmp_path: Path, window: int | None
) -> None:
    far = list(made(ShardSet.open(URL, tmp_path / "cache"), window, 30))
    near = list(made(ShardSet.open(str(folder), tmp_path / "cache"), window, 30))
    for ours, theirs in zip(far, near, strict=True):
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        assert torch.equal(ours.images, theirs.images)


def test_a_window_and_the_next_one_are_fetched_and_no_more(
    folder: Path, tmp_path: Path, fetched: list[str]
) -> None:
    shards = ShardSet.open(URL, tmp_path / "cache")
    plan = Plan(shards.counts, BATCH, 0, 2)
    prefetch = Prefetch(shards, plan, 0, 1, ahead=1, stop_step=99)
    try:
        prefetch.at(0)
        prefetch._pool.shutdown()  # type: ignore[union-attr]
    finally:
        prefetch.close()
    expected = {name(s) for window in (0, 1) for s in plan.shards(0, window, 0, 1)}
    assert set(fetched) == expected
    assert len(expected) == 4


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_windows_of_any_size_are_read_ahead_and_closed_again(
    tmp_path: Path, window: int, fetched: list[str]
) -> None:
    shards = ShardSet.open(URL, tmp_path / "cache")
    plan = Plan(shards.counts, BATCH, 0, window)
    stop = 3 * plan.steps_per_epoch
    prefetch = Prefetch(shards, plan, 0, 1, ahead=AHEAD, stop_step=stop)
    try:
        for step in range(stop):
            prefetch.at(step)
            if step + 1 < stop:
                assert set(plan.windows(step + 1)) <= prefetch._wanted
            assert len(prefetch._wanted) <= prefetch._at_once + 1
            for sample in plan.ids(step).tolist():
                shards.read(sample)
            ours = range(max(0, step - AHEAD), step + 1)
            assert {w for made in ours for w in plan.windows(made)} <= prefetch._wanted
            assert len(shards._open_files) <= window * (prefetch._at_once + 1)
        assert max(epoch for epoch, _ in prefetch._wanted) == 2, "nothing beyond the end"
    finally:
        prefetch.close()


@pytest.mark.usefixtures("folder")
def test_a_rank_fetches_what_its_rows_name(tmp_path: Path, fetched: list[str]) -> None:
    shards = ShardSet.open(URL, tmp_path / "cache")
    plan = Plan(shards.counts, BATCH, 3, 8)
    steps = range(plan.steps_per_epoch)
    for rank in range(BATCH):
        ids = [int(plan.ids(step)[rank]) for step in steps]
        starts = np.cumsum(shards.counts)
        read = [int(np.searchsorted(starts, i, side="right")) for i in ids]
        assert plan.shards(0, 0, rank, BATCH) == list(dict.fromkeys(read))
    assert fetched == []


@pytest.mark.usefixtures("folder")
def test_the_budget_holds_through_whole_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetched: list[str]
) -> None:
    cache = tmp_path / "cache"
    shards = ShardSet.open(URL, cache)
    takes = sorted(shards.takes(n) for n in range(8))
    budget = sum(takes[-6:]) + (25 << 10)  # three windows of two, and the indexes
    monkeypatch.setenv("STOPLAB_CACHE_BYTES", str(budget))
    feed = made(ShardSet.open(URL, cache), 2, 60)
    most = 0
    for batch in feed:
        assert len(batch.ids) == BATCH
        most = max(most, _bytes(cache))
    # One that is read again while the next ones come may stand over it: the log tells that.
    assert most <= budget + takes[-1]
    assert len(fetched) > 8, "in later epochs again"
    assert set(fetched) == {name(n) for n in range(8)}


def _bytes(cache: Path) -> int:
    """What lies in it at one moment: others add and remove while it is looked through."""
    sizes = _sizes(cache)
    while (again := _sizes(cache)) != sizes:
        sizes = again
    return sum(sizes.values())


def _sizes(cache: Path) -> dict[Path, int]:
    sizes = {}
    for place, _, names in os.walk(cache):
        for path in (Path(place, name) for name in names):
            with suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
    return sizes


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("window", "words"), [(2, "3 windows of 2"), (None, "all shards")])
def test_a_budget_that_cannot_hold_the_plan_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int | None, words: str
) -> None:
    monkeypatch.setenv("STOPLAB_CACHE_BYTES", "50000")
    shards = ShardSet.open(URL, tmp_path / "cache")
    with pytest.raises(DataError, match=f"{words}.*STOPLAB_CACHE_BYTES allows 50000"):
        next(made(shards, window, 3))


@pytest.mark.usefixtures("folder")
def test_closing_gives_up_what_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def never(self: copies.Fetched, copy: Path, given_up: threading.Event) -> None:
        begun.set()
        assert given_up.wait(60)
        raise DataAway("given up")

    before = threading.active_count()
    shards = ShardSet.open(URL, tmp_path / "cache")
    plan = Plan(shards.counts, BATCH, 0, 2)
    prefetch = Prefetch(shards, plan, 0, 1, ahead=1, stop_step=99)
    monkeypatch.setattr(copies.Fetched, "_fetch_once", never)
    prefetch.at(0)
    assert begun.wait(60)
    prefetch.close()
    assert threading.active_count() == before


def test_a_copy_that_went_is_made_again(folder: Path, tmp_path: Path, fetched: list[str]) -> None:
    shards = ShardSet.open(URL, tmp_path / "cache")
    first = shards.read(0)
    for copy in (tmp_path / "cache" / "remote").rglob("*.tar"):
        copy.unlink()
    assert shards.read(1), "what is open is read on"
    shards.close_others([])
    assert shards.read(0) == first
    assert fetched == [name(0)] * 2


def test_the_cache_may_be_emptied_while_a_shard_comes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, copied = tmp_path / "cache", copies.copied
    emptied = []

    def emptying(*words: Any) -> str:
        checksum = copied(*words)
        if not emptied:
            emptied.append(shutil.rmtree(cache))
        return checksum

    monkeypatch.setattr(copies, "copied", emptying)
    near = ShardSet.open(str(folder), tmp_path / "other")
    assert ShardSet.open(URL, cache).read(0) == near.read(0)
    assert emptied


def test_near_sets_need_no_threads(folder: Path, tmp_path: Path) -> None:
    found: list[Batch] = list(islice(made(ShardSet.open(str(folder), tmp_path / "c"), 2, 9), 9))
    assert len(found) == 9
    plan = Plan(COUNTS, BATCH, 0, 2)
    prefetch = Prefetch(
        ShardSet.open(str(folder), tmp_path / "c"), plan, 0, 1, ahead=AHEAD, stop_step=9
    )
    assert prefetch._pool is None
