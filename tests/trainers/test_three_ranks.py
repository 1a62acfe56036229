"""Three ranks: a sum of three depends on its order, which a start anew must not change."""

from __future__ import annotations

import copy
import os
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from stoplab_trainers.checkpoint import weights_sha256
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.loop import Run, World, steps
from support_runs import tiny

pytestmark = pytest.mark.timeout(900)  # three more processes that import torch
STEPS, SAVED = 6, 3


def one_of_three(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="3", LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=3)
    shards, found = ShardSet.open("digits", folder / "cache"), dict[str, str]()
    for strategy in ("ddp", "fsdp"):
        spec = tiny(
            compute__workers=3, compute__strategy=strategy, optim__batch_size=63, model__depth=2
        )
        whole = Run(spec, shards, World(rank, 3))
        advance(whole, SAVED)
        saved = [copy.deepcopy(whole.state()) if rank == 0 else whole.state()]
        dist.broadcast_object_list(saved, 0)
        advance(whole, STEPS - SAVED)
        again = Run(spec, shards, World(rank, 3))
        again.load(SAVED, saved[0])
        advance(again, STEPS - SAVED)
        for name, run in (("whole", whole), ("again", again)):
            model = run.state()["model"]
            if rank == 0:
                found[f"{strategy} {name}"] = weights_sha256(model)
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


def advance(run: Run, count: int) -> None:
    """Some more steps."""
    feed = steps(run)
    for _ in islice(feed, count):
        pass
    feed.close()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("three")
    ShardSet.open("digits", folder / "cache")  # all read it
    mp.spawn(one_of_three, (folder,), nprocs=3)  # type: ignore[no-untyped-call]
    return torch.load(folder / "found.pt")


@pytest.mark.invariant(21)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_run_that_begins_anew_ends_with_the_same_bits(found: Any, strategy: str) -> None:
    assert found[f"{strategy} again"] == found[f"{strategy} whole"]
