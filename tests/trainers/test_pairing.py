"""What several ranks record of a step: the whole global batch, as one rank would."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.loop import Run, World, _feed
from stoplab_trainers.masking import draw_masks
from support_runs import tiny

STEPS = 3
Records = dict[str, dict[str, str]]


def records(world: World, folder: Path) -> Records:
    """Records of the first steps: as they are, the last rank's otherwise, and official."""
    found = {}
    for name in ("plain", "other crops", "replaced", "official"):
        sampler = "official" if name == "official" else "fixed"
        spec = tiny(masking__sampler=sampler, masking__min_keep=3)
        run = Run(spec, ShardSet.open(spec.data.train, folder / f"cache{world.rank}"), world)
        for _, batch in zip(range(STEPS), _feed(run), strict=False):
            if name == "other crops" and world.rank == world.size - 1:
                batch = batch._replace(images=batch.images.flip(3))
            if name == "replaced" and world.rank == world.size - 1:
                batch = batch._replace(ids=np.append(batch.ids[:-1], 0))
            run.record.add(run, batch, draw_masks(spec, batch.step, run.rows))
        found[name] = run.record.certificate()
    return found


def one_of_two(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    found = records(World(rank, 2), folder)
    if rank == 0:
        (folder / "records.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Records:
    return records(World(), tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Records:
    folder = tmp_path_factory.mktemp("two")
    mp.spawn(one_of_two, (folder,), nprocs=2)  # type: ignore[no-untyped-call]
    found: Records = json.loads((folder / "records.json").read_text())
    return found


def unlike(a: dict[str, str], b: dict[str, str]) -> set[str]:
    assert a.keys() == b.keys()
    return {stream for stream in a if a[stream] != b[stream]}


def test_two_ranks_record_what_one_would(one: Records, two: Records) -> None:
    assert unlike(one["plain"], two["plain"]) == {"crops"}  # hashed rank by rank
    assert unlike(one["official"], two["official"]) <= {"crops", "masks"}  # cut rank by rank


def test_what_replaces_bad_samples_counts_whatever_rank_met_them(
    one: Records, two: Records
) -> None:
    assert unlike(one["replaced"], two["replaced"]) == {"crops"}
    assert unlike(two["plain"], two["replaced"]) == {"samples"}


def test_the_second_ranks_crops_count(two: Records) -> None:
    assert unlike(two["plain"], two["other crops"]) == {"crops"}
