"""What a run was really fed, as hashes: proof that the arms of a block are a pair.

The first and the last hundred steps are kept, and travel in the checkpoints, so that a resumed
run gives the same record as an undisturbed one.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from stoplab_trainers.checkpoint import weights_sha256
from stoplab_trainers.data.loader import Batch
from stoplab_trainers.data.plan import share
from stoplab_trainers.masking import TensorMasks, draw_masks
from stoplab_trainers.model.jepa import of_positions

if TYPE_CHECKING:  # the loop imports this module
    from stoplab_trainers.loop import Run, World

STEPS = 100
STREAMS = ("samples", "crops", "masks")


class PairingRecord:
    """Hashes of the initial weights, and of the global batch's sample ids, crops and masks.

    Rank 0's is the one that counts. Its own share it hashes as it was fed; of the others it draws
    the masks itself, which are functions of the step, and is told the ids and the crops' hashes.
    """

    def __init__(self, initial_weights: Mapping[str, torch.Tensor]) -> None:
        self._init = _init_hashes(initial_weights)
        self._digests: dict[str, list[str]] = {stream: [] for stream in STREAMS}

    def add(self, run: Run, batch: Batch, masks: TensorMasks) -> None:
        """Record one step's input, if it is among the first or the last hundred; all ranks call."""
        if STEPS <= batch.step < run.total_steps - STEPS:
            return
        crops = _crops(run, batch.images)
        # As they were read: what stands for a bad sample is known to the rank that met it.
        ids = _of_all_ranks(batch.ids.tobytes(), run.world)
        if run.world.rank > 0:
            return
        parts = {
            "samples": ids,
            "crops": crops,
            "masks": _whole_masks(run, batch.step, masks),
        }
        for stream, tensors in parts.items():
            self._digests[stream].append(_sha256(tensors).hexdigest())

    def certificate(self) -> dict[str, str]:
        """One hash a stream: `init`, `samples`, `crops`, `masks`.

        Of `init` also its parts, by which runs of unlike positions can be compared:
        `init/shared`, the weights that all positions have, and `init/NAME` for each other one.
        """
        streams = {
            stream: hashlib.sha256("".join(digests).encode()).hexdigest()
            for stream, digests in self._digests.items()
        }
        return {**self._init, **streams}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"init": dict(self._init), "digests": copy.deepcopy(self._digests)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        init = state["init"]
        self._init = {"init": init} if isinstance(init, str) else dict(init)  # str: before parts
        self._digests = copy.deepcopy(dict(state["digests"]))


def _whole_masks(run: Run, step: int, own: TensorMasks) -> list[torch.Tensor]:
    """All contexts, then all targets; shares of unlike lengths (official sampler) one by one."""
    world, size = run.world, run.spec.optim.batch_size
    shares = [
        own if rank == world.rank else draw_masks(run.spec, step, share(size, rank, world.size))
        for rank in range(world.size)
    ]
    return [*(one.context for one in shares), *(one.targets for one in shares)]


def _crops(run: Run, images: torch.Tensor) -> list[torch.Tensor]:
    """The images, where there is one rank; else a hash of each rank's.

    A hash of each image, where the number of ranks may change on the way.
    """
    if run.spec.compute.min_workers is not None:
        return _of_all_ranks(b"".join(_sha256([one]).digest() for one in images), run.world)
    if run.world.size == 1:
        return [images]
    return _of_all_ranks(_sha256([images]).digest(), run.world)


def _of_all_ranks(told: bytes, world: World) -> list[torch.Tensor]:
    own = torch.frombuffer(bytearray(told), dtype=torch.uint8)
    if world.size == 1:  # a GPU has no part in it, and would be waited for
        return [own]
    own = own.to(world.device)
    found = [torch.empty_like(own) for _ in range(world.size)]
    dist.all_gather(found, own)
    return found


def _sha256(tensors: Sequence[torch.Tensor]) -> hashlib._Hash:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest


def _init_hashes(weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    shared = {name: value for name, value in weights.items() if not of_positions(name)}
    own = {name: value for name, value in weights.items() if of_positions(name)}
    return {
        "init": weights_sha256(weights),
        "init/shared": weights_sha256(shared),
        **{f"init/{name}": weights_sha256({name: value}) for name, value in own.items()},
    }
