"""What several ranks record of a step: the whole global batch, as one rank would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp

from stoplab_trainers.data.loader import Batch
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.loop import Run, World, _feed
from stoplab_trainers.masking import TensorMasks, draw_masks
from support_runs import tiny

STEPS = 3


def record(
    rank: int, size: int, folder: Path, told: Any, broken: str | None, sampler: str = "fixed"
) -> None:
    """One rank's record of the first steps; the last rank may be fed something else."""
    if size > 1:
        dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=size)
    spec = tiny(masking__sampler=sampler)
    shards = ShardSet.open(spec.data.train, folder / f"cache{rank}")
    run = Run(spec, shards, World(rank, size))
    for _, batch in zip(range(STEPS), _feed(run), strict=False):
        masks = draw_masks(spec, batch.step, run.rows)
        run.record.add(run, *_tampered(batch, masks, broken if rank == size - 1 else None))
    if rank == 0:
        told.put(run.record.certificate())
    if size > 1:
        dist.destroy_process_group()


def _tampered(batch: Batch, masks: TensorMasks, broken: str | None) -> tuple[Batch, TensorMasks]:
    if broken == "crops":
        batch = batch._replace(images=batch.images.flip(3))
    return batch, masks


def certificate(size: int, folder: Path, broken: str | None = None, **of: Any) -> dict[str, str]:
    context = mp.get_context("spawn")
    told = context.SimpleQueue()
    folder.mkdir()
    mp.spawn(_started, (size, folder, told, broken, of), nprocs=size)  # type: ignore[no-untyped-call]
    found: dict[str, str] = told.get()
    return found


def _started(
    rank: int, size: int, folder: Path, told: Any, broken: str | None, of: dict[str, Any]
) -> None:
    record(rank, size, folder, told, broken, **of)


@pytest.fixture
def one(tmp_path: Path) -> dict[str, str]:
    return certificate(1, tmp_path / "one")


def test_two_ranks_record_what_one_would(tmp_path: Path, one: dict[str, str]) -> None:
    two = certificate(2, tmp_path / "two")
    assert {key for key in one if one[key] != two[key]} == {"crops"}  # hashed rank by rank
    assert certificate(2, tmp_path / "again") == two


def test_the_second_ranks_crops_count(tmp_path: Path) -> None:
    whole, broken = (certificate(2, tmp_path / str(b), b) for b in (None, "crops"))
    assert {key for key in whole if whole[key] != broken[key]} == {"crops"}
