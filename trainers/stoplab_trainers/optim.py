"""AdamW with the published schedules, and the moving average of the target encoder.

Formulas: ijepa:src/utils/schedulers.py and src/helper.py @52c1ae9. Steps count from 1; the
momentum is indexed one back, so that the first update uses its start value.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW

from stoplab_platform.specs.optim import OptimSpec

Pairs = list[tuple[nn.Parameter, nn.Parameter]]
"""Weights of a target, each beside the one that it follows."""


class Schedules:
    """Learning rate, weight decay and momentum of every step of a run."""

    def __init__(self, optim: OptimSpec, steps_per_epoch: int) -> None:
        self.optim = optim
        self.total_steps = optim.epochs * steps_per_epoch
        self.warmup_steps = int(optim.warmup_epochs * steps_per_epoch)
        frozen = optim.freeze_after_epoch
        self.last_change = self.total_steps if frozen is None else frozen * steps_per_epoch

    def lr(self, step: int) -> float:
        """Linear from start_lr to lr over the warm-up, then a cosine to final_lr, until frozen."""
        optim, warmup, step = self.optim, self.warmup_steps, min(step, self.last_change)
        if step < warmup:
            return optim.start_lr + step / warmup * (optim.lr - optim.start_lr)
        progress = (step - warmup) / max(1, self.total_steps - warmup)
        return max(optim.final_lr, _cosine(optim.lr, optim.final_lr, progress))

    def weight_decay(self, step: int) -> float:
        """A cosine from the first to the second value of weight_decay, until frozen."""
        start, end = self.optim.weight_decay
        return _cosine(start, end, min(step, self.last_change) / self.total_steps)

    def momentum(self, step: int) -> float:
        """Linear from the first towards the second value of ema, which it never reaches."""
        start, end = self.optim.ema
        return start + (step - 1) * (end - start) / self.total_steps


def param_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Trained parameters in two groups: decayed, and not (biases and 1-D tensors)."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = parameter.ndim == 1 or "bias" in name
            (plain if spared else decayed).append(parameter)
    return [{"params": decayed, "decays": True}, {"params": plain, "decays": False}]


def build_optimizer(model: nn.Module, optim: OptimSpec) -> AdamW:
    """AdamW over ``param_groups``; rate and decay come from ``set_step``."""
    groups = param_groups(model)
    for group in groups:
        group["weight_decay"] = optim.weight_decay[0] if group["decays"] else 0.0
    return AdamW(groups, lr=optim.lr, betas=optim.betas, fused=True)


def set_step(optimizer: torch.optim.Optimizer, schedules: Schedules, step: int) -> None:
    """Gives the optimiser the rate and decay of ``step`` (from 1), before it is used."""
    lr, weight_decay = schedules.lr(step), schedules.weight_decay(step)
    for group in optimizer.param_groups:
        group["lr"] = lr
        if group["decays"]:
            group["weight_decay"] = weight_decay


def paired(target: nn.Module, encoder: nn.Module) -> Pairs:
    """Each weight of a target beside that of the encoder which it follows."""
    return list(zip(target.parameters(), encoder.parameters(), strict=True))


@torch.no_grad()
def update_ema(pairs: Pairs, momentum: float) -> None:
    """target <- momentum x target + (1 - momentum) x encoder, in fp32, after the step."""
    pairs = [(own, new) for own, new in pairs if new.requires_grad]
    assert all(own.dtype == torch.float32 for own, _ in pairs), "bf16 would round the average away"
    torch._foreach_lerp_([own for own, _ in pairs], [new for _, new in pairs], 1 - momentum)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))
