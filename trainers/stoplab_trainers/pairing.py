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

STEPS = 100
STREAMS = ("samples", "crops", "masks")


class PairingRecord:
    """Hashes of the initial weights and, of rank 0, of sample ids, crops and masks."""

    def __init__(self, initial_weights: Mapping[str, torch.Tensor]) -> None:
        self._init = weights_sha256(initial_weights)
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
        """One hash a stream: `init`, `samples`, `crops`, `masks`."""
        streams = {
            stream: hashlib.sha256("".join(digests).encode()).hexdigest()
            for stream, digests in self._digests.items()
        }
        return {"init": self._init, **streams}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"init": self._init, "digests": copy.deepcopy(self._digests)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self._init = state["init"]
        self._digests = copy.deepcopy(dict(state["digests"]))
