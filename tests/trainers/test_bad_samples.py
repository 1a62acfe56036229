"""Samples that cannot be decoded: replaced alike by all, counted once, up to a limit."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from stoplab_platform.errors import DataError
from stoplab_platform.specs.data import DataSpec
from stoplab_trainers.data.bad import BadSamples
from stoplab_trainers.data.loader import Batch, batches
from stoplab_trainers.data.pack import write_shard
from stoplab_trainers.data.plan import Plan
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.loop import World
from stoplab_trainers.rank import run_rank
from stoplab_trainers.watchdog import Watchdog
from support_runs import folder, identity, tiny
from support_shards import members

BAD = {4, 17, 18}
BATCH, COUNT = 6, 36


@pytest.fixture
def place(tmp_path: Path) -> str:
    for number in range(3):
        samples = [(f"s{n:04d}", members(n)) for n in range(number * 12, number * 12 + 12)]
        for n, (_, parts) in enumerate(samples):
            if number * 12 + n in BAD:
                parts["png"] = parts["png"][:120]
        write_shard(tmp_path / f"part-{number}.tar", samples)
    return str(tmp_path / "part-*.tar")


@pytest.fixture
def shards(place: str, tmp_path: Path) -> ShardSet:
    return ShardSet.open(place, tmp_path / "cache")


def made(
    shards: ShardSet,
    start: int = 0,
    stop: int = 18,
    threads: int = 1,
    rank: int = 0,
    world: int = 1,
    most: int = 3,
) -> list[Batch]:
    values = {"train": "x", "image_size": 12, "loader_threads": threads, "max_bad_samples": most}
    plan = Plan(shards.counts, BATCH, 0)
    return list(batches(
        shards, plan, DataSpec.model_validate(values), seed=0, rank=rank, world=world,
        start_step=start, stop_step=stop,
    ))  # fmt: skip


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        assert torch.equal(ours.images, theirs.images)


def test_batches_stay_full_and_others_of_the_shard_stand_in(shards: ShardSet) -> None:
    plan = Plan(shards.counts, BATCH, 0)
    stand_ins = {}
    for batch in made(shards):
        planned = plan.ids(batch.step)
        assert batch.images.shape[0] == BATCH
        assert not set(batch.ids.tolist()) & BAD
        for wanted, given in zip(planned.tolist(), batch.ids.tolist(), strict=True):
            if wanted in BAD:
                assert given // 12 == wanted // 12
                stand_ins[plan.epoch(batch.step), wanted] = given
            else:
                assert given == wanted
    assert len(stand_ins) == 3 * len(BAD)
    assert len({given for (_, wanted), given in stand_ins.items() if wanted == 4}) > 1, "by epoch"


def test_the_choice_is_the_same_for_threads_ranks_and_restarts(shards: ShardSet) -> None:
    expected = made(shards)
    assert_same(made(shards, threads=5), expected)
    assert_same(made(shards, start=7), expected[7:])
    parts = [made(shards, rank=rank, world=3) for rank in range(3)]
    for step, batch in enumerate(expected):
        joined = torch.cat([parts[rank][step].images for rank in range(3)])
        assert torch.equal(joined, batch.images)


def test_each_is_named_once(shards: ShardSet, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="stoplab.data"):
        made(shards, threads=3)
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 3
    assert all("no image that can be read" in line for line in lines)
    assert all(sum(f"'s{n:04d}' in" in line for line in lines) == 1 for n in BAD)


@pytest.mark.parametrize("most", [0, 1, 2])
def test_one_too_many_fails_with_the_list(shards: ShardSet, most: int) -> None:
    text = f"{most + 1} samples cannot be read, and data.max_bad_samples allows {most}:"
    with pytest.raises(DataError, match=text) as caught:
        made(shards, most=most)
    assert str(caught.value).count("sample 's00") == most + 1


def test_restarts_and_other_ranks_count_none_twice(shards: ShardSet, tmp_path: Path) -> None:
    def met(rank: int, *samples: int) -> BadSamples:
        bad = BadSamples(shards, 2, 0)
        bad.keep_in(tmp_path / "bad", rank)
        for sample in samples:
            bad.note(sample, DataError(f"sample {sample}"))
        return bad

    met(0, 4)
    first = met(0, 4)
    assert first.total() == 1
    met(1, 17, 4)
    assert first.total() == 2
    first.check()
    with pytest.raises(DataError, match="3 samples cannot be read"):
        met(2, 18)
    assert first.total() == 3
    with pytest.raises(DataError, match="sample 18"):
        first.check()


def test_a_note_that_was_cut_off_spoils_none_after_it(shards: ShardSet, tmp_path: Path) -> None:
    for sample in (4, 5, 6):
        bad = BadSamples(shards, 9, 0)
        bad.keep_in(tmp_path / "bad", 0)
        bad.note(sample, DataError(f"sample {sample}"))
        if sample == 4:
            file = tmp_path / "bad" / "rank-0.jsonl"
            os.truncate(file, file.stat().st_size - 5)
    assert bad.total() == 2, "that of sample 4 is lost, until it is met again"


def test_a_shard_of_nothing_else_fails(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", [(f"s{n}", {"png": b"broken"}) for n in range(8)])
    shards = ShardSet.open(str(tmp_path / "a.tar"), tmp_path / "cache")
    with pytest.raises(DataError, match="hardly any of its shard"):
        made(shards, most=100, stop=1)


def test_a_run_counts_them_in_its_metrics(place: str, tmp_path: Path) -> None:
    data = {"train": place, "image_size": 16, "max_bad_samples": 3}
    spec = tiny(data=data, evals=[], optim__batch_size=12, collapse="off")
    run = folder(tmp_path)
    summary = run_rank(spec, run, identity(), World(), Watchdog(run, World()))
    assert summary is not None
    counted = [line for line in run.spool.read_text().splitlines() if "data/bad_samples" in line]
    assert counted
    assert (
        json.loads((run.bad_samples / "rank-0.jsonl").read_text().splitlines()[0])["sample"] in BAD
    )
    few = tiny(data={**data, "max_bad_samples": 2}, evals=[], optim__batch_size=12)
    assert few.run_digest({}) == spec.model_copy(update={"collapse": "warn"}).run_digest({})
    run = folder(tmp_path, "few")
    with pytest.raises(DataError, match="3 samples cannot be read"):
        run_rank(few, run, identity(), World(), Watchdog(run, World()))
