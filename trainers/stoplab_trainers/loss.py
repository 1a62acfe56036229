"""Losses between what is predicted and what is the target, and the penalty on A."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from stoplab_platform.specs.optim import PenaltySpec


def smooth_l1(
    pred: Float[Tensor, "*token d"], target: Float[Tensor, "*token d"]
) -> Float[Tensor, ""]:
    """Smooth L1 with beta 1, mean over everything, in fp32 whatever autocast says."""
    with torch.autocast(pred.device.type, enabled=False):
        return F.smooth_l1_loss(pred.float(), target.float(), beta=1.0)


def squared_error(
    pred: Float[Tensor, "*token d"], target: Float[Tensor, "*token d"]
) -> Float[Tensor, ""]:
    """Squared error, mean over everything, in fp32 whatever autocast says."""
    with torch.autocast(pred.device.type, enabled=False):
        return F.mse_loss(pred.float(), target.float())


def penalty(matrix: Float[Tensor, "width encoder"], spec: PenaltySpec) -> Float[Tensor, ""]:
    """``weight`` times the sum of absolute (`l1`) or squared (`l2`) entries of A."""
    total = matrix.abs().sum() if spec.norm == "l1" else matrix.square().sum()
    return spec.weight * total
