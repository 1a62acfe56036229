"""Batches: the same whoever makes them, however many, from wherever on."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stoplab_platform.errors import DataError
from stoplab_platform.specs.data import DataSpec
from stoplab_trainers.data import loader
from stoplab_trainers.data.decode import decode, whole
from stoplab_trainers.data.loader import Batch, batches, normalise
from stoplab_trainers.data.pack import write_shard
from stoplab_trainers.data.plan import Plan
from stoplab_trainers.data.shards import ShardSet
from support_shards import encoded, members, picture, three_shards

BATCH = 6


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return ShardSet.open(three_shards(tmp_path, (9, 14, 8), kind="jpg"), tmp_path / "cache")


def made(
    shards: ShardSet,
    *,
    seed: int = 0,
    threads: int = 1,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    stop: int = 12,
    **options: object,
) -> Iterator[Batch]:
    data = DataSpec.model_validate(
        {"train": "x", "image_size": 12, "hflip": True, "loader_threads": threads, **options}
    )
    plan = Plan(shards.counts, BATCH, seed, data.shuffle.window_shards)
    return batches(
        shards, plan, data, seed=seed, rank=rank, world=world, start_step=start, stop_step=stop
    )


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert [batch.step for batch in found] == [batch.step for batch in expected]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        assert torch.equal(ours.images, theirs.images)


def watched(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The samples that are read, and so decoded, from now on."""
    read, found = shards.read, []
    monkeypatch.setattr(
        shards, "read", lambda sample_id: found.append(sample_id) or read(sample_id)
    )
    return found


def test_batches_hold_the_steps_the_plan_and_the_images_they_name(shards: ShardSet) -> None:
    plan = Plan(shards.counts, BATCH, 0)
    found = list(made(shards, crop_scale=[1.0, 1.0], stop=7))
    assert [batch.step for batch in found] == list(range(7))
    for batch in found:
        np.testing.assert_array_equal(batch.ids, plan.ids(batch.step))
        assert batch.images.shape == (BATCH, 3, 12, 12)
        assert batch.images.dtype == torch.uint8
        for sample, image in zip(batch.ids, batch.images, strict=True):
            # Full crops differ from the whole image by aspect and flip, not by their colours.
            mean = whole(decode(shards.read(int(sample))), 12).float().mean((1, 2))
            assert (image.float().mean((1, 2)) - mean).abs().max() < 25


@pytest.mark.parametrize("decode", ["full", "scaled"])
@pytest.mark.parametrize("threads", [0, 2, 7])
@pytest.mark.invariant(14)
def test_threads_change_no_result(shards: ShardSet, threads: int, decode: str) -> None:
    expected = list(made(shards, decode=decode))
    assert_same(list(made(shards, threads=threads, decode=decode)), expected)


@settings(deadline=None, max_examples=20)
@given(
    st.none() | st.integers(1, 3), st.sampled_from([1, 2, 3, 6]), st.integers(0, 4),
    st.integers(0, 11), st.sampled_from(["full", "scaled"]),
)  # fmt: skip
@pytest.mark.invariant(14)
def test_window_ranks_threads_and_the_step_of_a_resume_change_no_result(
    tmp_path_factory: pytest.TempPathFactory,
    window: int | None, world: int, threads: int, start: int, decode: str,
) -> None:  # fmt: skip
    folder = tmp_path_factory.getbasetemp() / "drawn"
    if not folder.exists():
        folder.mkdir()
        three_shards(folder, (9, 14, 8), kind="jpg")
    shards = ShardSet.open(str(folder / "*.tar"), folder / "cache")
    options: dict[str, object] = {"shuffle": {"window_shards": window}, "decode": decode}
    expected = list(made(shards, **options))[start:]
    parts = [
        list(made(shards, rank=rank, world=world, threads=threads, start=start, **options))
        for rank in range(world)
    ]
    joined = [
        Batch(of[0].step, np.concatenate([b.ids for b in of]), torch.cat([b.images for b in of]))
        for of in zip(*parts, strict=True)
    ]
    assert_same(joined, expected)


@pytest.mark.parametrize("start", [1, 5, 11])
def test_a_run_may_go_on_at_any_step(shards: ShardSet, start: int) -> None:
    expected = list(made(shards))[start:]
    assert_same(list(made(shards, start=start)), expected)


@pytest.mark.parametrize("world", [2, 3, 6])
@pytest.mark.invariant(14)
def test_the_ranks_batches_make_up_the_global_one(shards: ShardSet, world: int) -> None:
    whole_batches = list(made(shards, stop=6))
    parts = [list(made(shards, rank=rank, world=world, stop=6)) for rank in range(world)]
    for step, batch in enumerate(whole_batches):
        joined = torch.cat([parts[rank][step].images for rank in range(world)])
        assert torch.equal(joined, batch.images)


def test_crops_follow_seed_epoch_and_sample(shards: ShardSet) -> None:
    def crops(**options: int) -> dict[int, torch.Tensor]:
        found = made(shards, **options)
        return {
            int(n): image
            for batch in found
            for n, image in zip(batch.ids, batch.images, strict=True)
        }

    first, second = crops(stop=5), crops(start=5, stop=10)
    other = crops(stop=5, seed=1)
    for later in (second, other):
        shared = first.keys() & later.keys()
        assert shared
        assert not any(torch.equal(first[n], later[n]) for n in shared)


def test_what_is_kept_in_memory_changes_no_result(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = watched(shards, monkeypatch)
    kept = list(made(shards))
    assert len(read) == len(shards)
    monkeypatch.setattr(loader, "KEEP_BYTES", 20 * 24 * 32 * 3)  # two thirds of the set
    read.clear()
    assert_same(list(made(shards)), kept)
    assert len(read) == 12 * BATCH


def test_only_few_batches_are_made_ahead(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "KEEP_BYTES", 0)
    read = watched(shards, monkeypatch)
    feed = made(shards, threads=2, stop=1000)
    list(islice(feed, 3))
    assert len(read) <= (3 + loader.AHEAD) * BATCH
    feed.close()  # type: ignore[attr-defined]


def test_without_threads_nothing_is_made_before_it_is_asked_for(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "KEEP_BYTES", 0)
    read = watched(shards, monkeypatch)
    before = set(threading.enumerate())
    feed = made(shards, threads=0, stop=1000)
    for number in (1, 2, 3):
        next(feed)
        assert len(read) == number * BATCH
    assert set(threading.enumerate()) <= before  # one of an earlier test may have ended


def test_torch_starts_no_threads_within_ours(tmp_path: Path) -> None:
    samples = [(f"s{n}", {"jpg": encoded(picture(n, 300, 400), "jpeg")}) for n in range(8)]
    write_shard(tmp_path / "a.tar", samples)
    large = ShardSet.open(str(tmp_path / "a.tar"), tmp_path / "cache")
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        torch.zeros(1 << 20).add_(1)  # torch's own are there from now on
        before = psutil.Process().num_threads()
        feed = made(large, threads=2, image_size=224, stop=1000)
        next(feed)
        assert psutil.Process().num_threads() <= before + 2
        assert torch.get_num_threads() == 4
        feed.close()  # type: ignore[attr-defined]
    finally:
        torch.set_num_threads(threads)


def test_closing_ends_the_threads(shards: ShardSet) -> None:
    before = threading.active_count()
    feed = made(shards, threads=3, stop=1000)
    next(feed)
    assert threading.active_count() > before
    feed.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize("threads", [0, 2])
def test_a_batchs_memory_ends_with_its_last_user(shards: ShardSet, threads: int) -> None:
    gc.disable()  # which would find it later, and many batches' memory would be taken until then
    try:
        users = [weakref.ref(batch.images) for batch in made(shards, threads=threads)]
        assert [user() for user in users] == [None] * len(users)
    finally:
        gc.enable()


@pytest.mark.parametrize(("decode", "threads"), [("full", 2), ("full", 0), ("scaled", 2)])
def test_a_broken_image_is_named(tmp_path: Path, decode: str, threads: int) -> None:
    samples = [(f"s{n}", members(n)) for n in range(9)]
    samples[4] = ("s4", {"png": encoded(picture(4))[:200]})
    write_shard(tmp_path / "a.tar", samples)
    shards = ShardSet.open(str(tmp_path / "a.tar"), tmp_path / "cache")
    with pytest.raises(DataError, match=r"sample 's4' in .*a\.tar: no image that can be read"):
        list(made(shards, threads=threads, decode=decode, stop=3))


def test_normalise_is_torchvisions() -> None:
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (images / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(normalise(images), expected, atol=1e-6, rtol=1e-6)
    assert normalise(images).dtype == torch.float32
    room = torch.full((2, 3, 4, 4), 7.0)
    assert normalise(images, room) is room
    assert torch.equal(room, normalise(images))
