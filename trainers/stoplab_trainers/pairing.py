"""What a run was really fed, as hashes: proof that the arms of a block are a pair.

The first and the last hundred steps are kept, and travel in the checkpoints, so that a resumed
run gives the same record as an undisturbed one.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from stoplab_trainers.checkpoint import weights_sha256
from stoplab_trainers.data.loader import Batch
from stoplab_trainers.masking import TensorMasks
from stoplab_trainers.model.jepa import of_positions

STEPS = 100
STREAMS = ("samples", "crops", "masks")


class PairingRecord:
    """Hashes of the initial weights and, of rank 0, of sample ids, crops and masks."""

    def __init__(self, initial_weights: Mapping[str, torch.Tensor]) -> None:
        self._init = _init_hashes(initial_weights)
        self._digests: dict[str, list[str]] = {stream: [] for stream in STREAMS}

    def add(self, batch: Batch, masks: TensorMasks, total_steps: int) -> None:
        """Record one step's input, if it is among the first or the last hundred."""
        if STEPS <= batch.step < total_steps - STEPS:
            return
        parts = {
            "samples": [torch.from_numpy(batch.ids)],
            "crops": [batch.images],
            "masks": [masks.context.cpu(), masks.targets.cpu()],
        }
        for stream, tensors in parts.items():
            digest = hashlib.sha256()
            for tensor in tensors:
                digest.update(tensor.contiguous().numpy().tobytes())
            self._digests[stream].append(digest.hexdigest())

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


def _init_hashes(weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    shared = {name: value for name, value in weights.items() if not of_positions(name)}
    own = {name: value for name, value in weights.items() if of_positions(name)}
    return {
        "init": weights_sha256(weights),
        "init/shared": weights_sha256(shared),
        **{f"init/{name}": weights_sha256({name: value}) for name, value in own.items()},
    }
