"""Optimiser and schedules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from stoplab_platform.errors import Problem
from stoplab_platform.specs.base import Spec


class PenaltySpec(Spec):
    """A penalty on A, the predictor's input projection, added to the loss."""

    norm: Literal["l1", "l2"]
    """`l1`: the sum of |A|. `l2`: the sum of A squared."""
    weight: float = Field(gt=0, le=1e6)
    """Factor of the norm in the loss (no unit). No default: the paper tells none."""


class OptimSpec(Spec):
    """AdamW with warm-up and cosine, rising weight decay, rising EMA momentum."""

    epochs: int = Field(default=600, ge=1, le=1_000_000)
    """Passes over the training set. Default 600: StoP paper, tables 10 and 11."""
    batch_size: int = Field(default=2048, ge=1, le=2**24)
    """Images per step over all workers. Default 2048: every published config."""
    lr: float = Field(default=8e-4, gt=0)
    """Peak learning rate. Default 8e-4: StoP configs (B, L)."""
    start_lr: float = Field(default=2e-4, ge=0)
    """Learning rate at the first step of the warm-up. Default 2e-4: StoP configs."""
    final_lr: float = Field(default=1e-4, ge=0)
    """Learning rate at the end of the cosine. Default 1e-4: StoP configs (B, L)."""
    warmup_epochs: float = Field(default=15, ge=0)
    """Linear warm-up (epochs, may be a fraction). Default 15: StoP configs (B, L)."""
    weight_decay: tuple[float, float] = (0.04, 0.4)
    """Weight decay at the start and at the end of its cosine. Default 0.04 to 0.4: I-JEPA."""
    ema: tuple[float, float] = (0.996, 1.0)
    """Momentum of the target encoder at the start and end, linear. Default 0.996 to 1."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moments. Default 0.9, 0.999: torch, as the published code uses."""
    clip_grad: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; null leaves it alone. Default null."""
    freeze_after_epoch: int | None = Field(default=None, ge=1, le=1_000_000)
    """Learning rate and weight decay stay what they are after so many epochs; null: never.
    Default null; the StoP config of ViT-H freezes both after 250 of 300."""
    a_penalty: PenaltySpec | None = None
    """Penalty on A (StoP paper, section 4.3: it does not do what the noise does); null: none.
    Default null."""

    def checks(self) -> Iterator[Problem]:
        """Warm-up fits the run; momenta are momenta."""
        if self.warmup_epochs > self.epochs:
            yield Problem(
                ("warmup_epochs",),
                f"{self.warmup_epochs} exceeds epochs ({self.epochs}); give at most that many",
                (("epochs",),),
            )
        if (self.freeze_after_epoch or 0) > self.epochs:
            yield Problem(
                ("freeze_after_epoch",),
                f"{self.freeze_after_epoch} exceeds epochs ({self.epochs}); give at most that many",
                (("epochs",),),
            )
        for name in ("ema", "betas"):
            if not all(0 <= value <= 1 for value in getattr(self, name)):
                yield Problem((name,), f"{list(getattr(self, name))} must lie in [0, 1]")
        if min(self.weight_decay) < 0:
            yield Problem(("weight_decay",), f"{list(self.weight_decay)} must not be negative")
