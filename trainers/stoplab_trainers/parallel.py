"""How several workers train one model: DDP, or FSDP2 with the student's weights in shards.

Under `fsdp` weights, gradients and optimiser of the student lie in shards, block by block; the
moving average is whole on every rank, so that evaluations need nobody else. Checkpoints hold whole
tensors under both strategies, and on any number of workers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

from stoplab_trainers.model.block import Block
from stoplab_trainers.model.jepa import Jepa
from stoplab_trainers.optim import Pairs, paired


def distributed(model: Jepa, strategy: str, world: int, device: torch.device) -> nn.Module:
    """What the step calls in the model's place; under `fsdp` that is the model itself, changed."""
    if world == 1:
        return model
    if strategy == "fsdp":
        # What the predictor returns is a view, and nobody changes it in place.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        mesh = init_device_mesh(device.type, (world,))
        for block in blocks(model):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices)


def blocks(module: nn.Module) -> list[Block]:
    """The transformer blocks of a module."""
    return [part for part in module.modules() if isinstance(part, Block)]


@contextmanager
def gradients_summed(student: nn.Module, over_ranks: bool) -> Iterator[None]:
    """Forward and backward whose gradients are averaged over the ranks, or stay each rank's own.

    Under `fsdp` they are averaged at once in any case: what is a rank's own would lie whole on it.
    """
    if isinstance(student, DistributedDataParallel) and not over_ranks:
        with student.no_sync():
            yield
    else:
        yield


def side_by_side(student: nn.Module, target: nn.Module, encoder: nn.Module) -> Iterator[Pairs]:
    """The weights of a target and of the student's encoder, each beside its own; all ranks call.

    Under `fsdp` a block's at a time, whole until the next ones are asked for: the student need not
    fit on a rank. What is outside of the blocks comes last, and stays whole as `outside` says.
    """
    if isinstance(student, FSDPModule):
        for own, new in zip(blocks(target), blocks(encoder), strict=True):
            assert isinstance(new, FSDPModule)
            new.unshard()
            yield paired(own, new)
            new.reshard()
        outside(student)
    # Blocks that lie in shards have had their turn.
    yield [pair for pair in paired(target, encoder) if not isinstance(pair[1], DTensor)]


def outside(student: nn.Module) -> None:
    """What is outside of the blocks lies whole until the next step; all ranks call.

    Diagnostics that one rank makes read A, the mask token and norms.
    """
    if isinstance(student, FSDPModule):
        student.unshard()


def gathered(state: Any, kept: bool) -> Any:
    """A state with whole tensors in the place of shards, where it is ``kept``; all ranks call.

    One tensor at a time is whole on the device: it goes to the CPU at once where it is kept, and
    elsewhere nowhere, None in its place.
    """

    def one(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        whole = value.full_tensor()
        return whole.cpu() if kept else None

    return tree_map(one, state)


def full(tensor: Tensor) -> Tensor:
    """A tensor, whole; all ranks call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fill_model(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load whole tensors into a model whose weights may lie in shards."""
    own = model.state_dict()
    model.load_state_dict({name: _as(own.get(name), value) for name, value in state.items()})


def fill_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load an optimiser's whole state; its parameters may lie in shards."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    split = {
        index: {
            name: _as(weights[index], value) if isinstance(value, Tensor) and value.ndim else value
            for name, value in moments.items()
        }
        for index, moments in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": split})


def _as(like: Tensor | None, value: Tensor) -> Tensor:
    """This rank's shard of a whole tensor, where its weight lies in shards."""
    if not isinstance(like, DTensor):
        return value
    value = value.to(like.device)
    # Every rank has read the same checkpoint: nobody needs to send.
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
