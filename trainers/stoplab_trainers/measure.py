"""The numbers of a logged step, and how fast the steps before it were."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor

from stoplab_platform.cost import step_flops
from stoplab_platform.errors import StoplabError
from stoplab_trainers.diagnostics.noise import position_stats
from stoplab_trainers.hardware import matrix_rate, precision
from stoplab_trainers.masking import TensorMasks
from stoplab_trainers.step import Done

if TYPE_CHECKING:  # the loop imports this module
    from stoplab_trainers.loop import Run

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Diverged(StoplabError):
    """The loss is no longer a number."""


def measure(run: Run, done: Done) -> dict[str, float]:
    """Numbers of a step; the loss is the mean over all workers, without the penalty.

    All ranks call. Raises Diverged where a loss or a gradient since the last call was no number.
    """
    value = _checked_loss(run, done.loss)
    masks = done.masks
    flat = None
    if run.objective.in_features:
        flat = torch.cat([part.flatten(0, 2) for part in done.targets]).float()
    metrics = {
        "train/loss": value,
        "train/lr": run.schedules.lr(run.step),
        "train/weight_decay": run.schedules.weight_decay(run.step),
        "train/grad_norm": float(done.gradient_norm),
        "mask/context_tokens": float(masks.context.shape[1]),
        "mask/effective_ratio": float(_covered(masks, run.spec.grid**2).float().mean()),
        **position_stats(run.model, run.spec, done.features),
    }
    if run.averages:
        metrics["train/ema"] = run.schedules.momentum(run.step)
    if flat is not None:
        metrics["collapse/feature_std"] = float(flat.std(dim=0).mean())
    if done.penalty is not None:
        metrics["train/a_penalty"] = float(done.penalty)
    return metrics


class Pace:
    """Steps since the last logged one: their time, and what they computed."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._seconds: list[float] = []
        self._flops = 0.0

    def add(self, masks: TensorMasks, seconds: float) -> None:
        """Count one step."""
        self._seconds.append(seconds)
        tokens = masks.context.shape[1], masks.targets.shape[2]
        self._flops += len(masks.context) * step_flops(self._run.spec, *tokens)

    def taken(self) -> dict[str, float]:
        """Images a second of all workers and, on GPUs, this one's MFU; counts anew from here.

        MFU is a fraction: operations of the published step over those that a large matrix product
        reaches on this GPU in the run's precision.
        """
        run, seconds = self._run, sum(self._seconds)
        found = {
            "train/samples_per_s": run.spec.optim.batch_size * len(self._seconds) / seconds,
        }
        if run.world.device.type == "cuda":
            dtype = DTYPES[precision(run.spec, run.world.device)]
            rate = matrix_rate(run.world.device, dtype)
            found["train/mfu"] = self._flops / seconds / rate
        self._seconds, self._flops = [], 0.0
        return found


def _checked_loss(run: Run, loss: Float[Tensor, ""]) -> float:
    """The loss over all workers; Diverged, where one or a gradient was no number since the last."""
    told = torch.stack([loss.float(), run.finite.float()])
    if run.world.size > 1:
        dist.all_reduce(told, op=dist.ReduceOp.SUM)
        told /= run.world.size
    value, finite = told.tolist()
    if not math.isfinite(value):
        raise Diverged(f"the loss is {value} at step {run.step}")
    if finite < 1:
        raise Diverged(f"the loss or its gradient was no number at step {run.step} or before")
    run.checked = run.step
    return float(value)


def _covered(masks: TensorMasks, patches: int) -> Bool[Tensor, "b n"]:
    covered = torch.zeros(len(masks.targets), patches, dtype=torch.bool)
    return covered.scatter_(1, masks.targets.flatten(1), True)
