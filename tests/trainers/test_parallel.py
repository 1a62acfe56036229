"""Strategies: shards train what copies train, and their checkpoints are each other's."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor

from stoplab_platform.cost import parameters
from stoplab_platform.errors import Fenced, Stopped
from stoplab_platform.files import write_json
from stoplab_platform.paths import RunFolder
from stoplab_trainers import checkpoint, step
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.diagnostics.noise import position_stats
from stoplab_trainers.hooks import Saving, Stopping
from stoplab_trainers.loop import Run, StepReport, World, _feed, steps
from stoplab_trainers.masking import draw_masks
from stoplab_trainers.parallel import blocks
from stoplab_trainers.step import Done, _accumulate, train_step
from support_runs import tiny

pytestmark = pytest.mark.timeout(900)  # two more processes that import torch
STEPS = 3
CHANGES: dict[str, Any] = {
    "model__depth": 2, "model__predictor__depth": 2, "optim__clip_grad": 0.1,
    "optim__a_penalty": {"norm": "l2", "weight": 0.01},
}  # fmt: skip
WAYS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"compute__strategy": "fsdp"},
    "ddp in parts": {"compute__accumulate": 2},
    "fsdp in parts": {"compute__strategy": "fsdp", "compute__accumulate": 2},
    "fsdp recomputing": {"compute__strategy": "fsdp", "compute__activation_checkpointing": True},
}


def advance(run: Run, count: int) -> list[Done]:
    """The next steps, of this rank's share."""
    done, feed = [], _feed(run)
    for _ in range(count):
        run.step += 1
        done.append(train_step(run, next(feed)))
    feed.close()  # type: ignore[attr-defined]
    return done


def losses(done: list[Done]) -> list[float]:
    return [float(one.loss) for one in done]


def from_first(state: dict[str, Any], rank: int) -> dict[str, Any]:
    """What rank 0 has, on every rank: as from a checkpoint."""
    told = [state if rank == 0 else None]
    dist.broadcast_object_list(told, 0)
    assert told[0] is not None
    return told[0]


def has_shards(state: dict[str, Any]) -> list[int]:
    """Of each rank, how many of the weights and moments it was given whole."""
    values = [
        *state["model"].values(),
        *(m["exp_avg"] for m in state["optimizer"]["state"].values()),
    ]
    counts = [0, 0]
    dist.all_gather_object(counts, sum(value is not None for value in values))
    return counts


def after_a_part(run: Run) -> int:
    """The numbers in this rank's gradients once the first part of a step is computed."""
    batch = next(_feed(run))
    run.optimizer.zero_grad()
    _accumulate(run, batch, draw_masks(run.spec, batch.step, run.rows), 0)
    found = [weight.grad for weight in run.weights]
    run.optimizer.zero_grad()
    return sum(one.to_local().numel() for one in found if isinstance(one, DTensor))


def whole_blocks(run: Run) -> list[int]:
    """How many of the student's blocks lie whole on this rank while the average moves."""
    counts, real = [], step.update_ema

    def watched(*told: Any) -> None:
        own = blocks(run.model)
        counts.append(sum(not isinstance(block.attn.qkv.weight, DTensor) for block in own))
        real(*told)

    step.update_ema = watched
    advance(run, 1)
    step.update_ema = real
    return counts


def one_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    shards, found = ShardSet.open("digits", folder / "cache"), {}
    for name, changes in WAYS.items():
        run = Run(tiny(compute__workers=2, **CHANGES, **changes), shards, World(rank, 2))
        done = advance(run, STEPS)
        state = from_first(copy.deepcopy(run.state()), rank)  # the next step changes it in place
        found[name] = {
            "losses": losses(done),
            "state": state,
            "stats": position_stats(run.model, run.spec, done[-1].features) if rank == 0 else {},
            "sharded": sum(isinstance(p, DTensor) for p in run.optimizer.param_groups[0]["params"]),
        }
        # Each goes on from the other's: what copies have saved in shards, and the reverse.
        other = {**changes, "compute__strategy": "ddp" if "fsdp" in name else "fsdp"}
        crossed = Run(tiny(compute__workers=2, **CHANGES, **other), shards, World(rank, 2))
        crossed.load(STEPS, copy.deepcopy(state))
        found[name]["crossed"] = losses(advance(crossed, 1))
        found[name]["gone on"] = losses(advance(run, 1))
        found[name]["after"] = copy.deepcopy(run.state()["model"])
        found[name]["has"] = has_shards(run.state())
        if name == "fsdp in parts":
            found["after a part"] = after_a_part(run)
        if name == "fsdp":
            found["ends"] = ends(run, folder)
            found["whole blocks"] = whole_blocks(run)
    logged = Run(tiny(compute__workers=2, **WAYS["fsdp"]), shards, World(rank, 2))
    found["reports"] = next(steps(logged)).metrics
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


def ends(run: Run, folder: Path) -> list[list[str]]:
    """How each rank ends at a stop file, and where rank 0 has lost the folder to another."""
    stop, told = folder / "stop.json", []
    if run.world.rank == 0:
        write_json(stop, {"intent": "PAUSED"})
    saving = Saving(RunFolder(folder / "run"), {"run": "x"})
    report = StepReport(run.step, run.last_step, 0, False, 1.0, {})
    for lost in (False, True):
        try:
            Stopping([stop], saving, lambda lost=lost: lost)(run, report)  # type: ignore[misc]
        except (Stopped, Fenced) as error:
            told.append(type(error).__name__)
    everybody: list[Any] = [None, None]
    dist.all_gather_object(everybody, told)
    return everybody


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both ranks were."""
    folder = tmp_path_factory.mktemp("two")
    ShardSet.open("digits", folder / "cache")  # both read it
    mp.spawn(one_of_two, (folder,), nprocs=2)  # type: ignore[no-untyped-call]
    return folder


@pytest.fixture(scope="module")
def found(at: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(at / "found.pt", weights_only=False)
    return loaded


def furthest(one: Any, other: Any) -> float:
    """The largest difference of two states' tensors."""
    if isinstance(one, torch.Tensor):
        assert type(one) is type(other) is torch.Tensor
        assert one.shape == other.shape
        return float((one.double() - other.double()).abs().max())
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return max((furthest(one[name], other[name]) for name in one), default=0.0)
    if isinstance(one, list | tuple):
        return max((furthest(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    assert one == other
    return 0.0


@pytest.mark.parametrize("name", ["fsdp", "fsdp recomputing"])
def test_shards_train_the_same_weights(found: dict[str, Any], name: str) -> None:
    """Model, moving average and optimiser, in a checkpoint's form."""
    for part in ("model", "target", "optimizer", "record"):
        one, other = found["ddp"]["state"][part], found[name]["state"][part]
        assert furthest(one, other) < 1e-6, part
    assert found[name]["losses"] == pytest.approx(found["ddp"]["losses"], abs=1e-6)
    assert found[name]["sharded"] > found["ddp"]["sharded"] == 0


@pytest.mark.parametrize(
    ("name", "like"), [("ddp in parts", "ddp"), ("fsdp in parts", "ddp in parts")]
)
def test_parts_train_the_same_weights_up_to_rounding(
    found: dict[str, Any], name: str, like: str
) -> None:
    """A key's bias has no gradient, and Adam steps by the sign of what rounding leaves of it."""
    for part in ("model", "target", "optimizer", "record"):
        one, other = found[like]["state"][part], found[name]["state"][part]
        assert furthest(one, other) < 1e-5, part
    assert (found[name]["sharded"] > 0) == name.startswith("fsdp")
    assert found[like]["sharded"] == 0
    assert found[like]["losses"] == pytest.approx(found[name]["losses"], abs=1e-6)


def test_gradients_of_parts_lie_in_shards(found: dict[str, Any]) -> None:
    """Until the last part all of them would lie on each rank, in a model that does not fit."""
    weights = parameters(tiny(compute__workers=2, **CHANGES)).trained
    assert found["after a part"] == pytest.approx(weights / 2, rel=0.01)


def test_the_average_asks_for_one_block_at_a_time(found: dict[str, Any]) -> None:
    """The student as a whole need not fit on a rank."""
    assert found["whole blocks"] == [1, 1, 0]


def test_the_moving_average_has_moved(found: dict[str, Any]) -> None:
    state = found["fsdp"]["state"]
    name = "vit.blocks.1.mlp.fc1.weight"
    apart = (state["model"][f"encoder.{name}"] - state["target"][name]).abs().max()
    assert 0 < apart < 0.1


@pytest.mark.parametrize("name", WAYS)
def test_a_checkpoint_goes_on_under_the_other_strategy(found: dict[str, Any], name: str) -> None:
    assert found[name]["crossed"] == pytest.approx(found[name]["gone on"], abs=1e-6)


def test_ranks_end_together_and_save_what_lies_in_shards(found: dict[str, Any], at: Path) -> None:
    assert found["ends"] == [["Stopped", "Fenced"]] * 2
    newest = checkpoint.latest(RunFolder(at / "run").checkpoints)
    assert newest is not None
    step, state = checkpoint.load(newest, identity={"run": "x"})
    assert step == STEPS + 1
    assert furthest(state["model"], found["fsdp"]["after"]) == 0


def test_only_the_first_rank_holds_what_was_gathered(found: dict[str, Any]) -> None:
    """The others would hold a second copy of a model that fits no other way than in shards."""
    everything, nothing = found["fsdp"]["has"]
    assert everything == found["ddp"]["has"][0] > 0
    assert nothing == 0


def test_one_rank_alone_can_look_at_the_positions(found: dict[str, Any]) -> None:
    assert found["fsdp"]["stats"] == pytest.approx(found["ddp"]["stats"], rel=1e-5)
    assert found["reports"]["stop/a_norm"] > 0


def test_a_state_of_shards_is_saved_and_loaded_by_one_worker(
    found: dict[str, Any], tmp_path: Path
) -> None:
    state = found["fsdp"]["state"]
    path = checkpoint.save(tmp_path, step=STEPS, tensors=state, identity={"run": "x"}, keep=1)
    alone = Run(tiny(**CHANGES), ShardSet.open("digits", tmp_path / "cache"))
    alone.load(*checkpoint.load(path, identity={"run": "x"}))
    assert furthest(alone.state()["model"], state["model"]) == 0
    assert furthest(alone.state()["optimizer"], state["optimizer"]) == 0
    assert losses(advance(alone, 1))[0] > 0
