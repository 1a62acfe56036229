"""The loss between predicted and target features."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def smooth_l1(
    pred: Float[Tensor, "*token d"], target: Float[Tensor, "*token d"]
) -> Float[Tensor, ""]:
    """Smooth L1 with beta 1, mean over everything, in fp32 whatever autocast says."""
    with torch.autocast(pred.device.type, enabled=False):
        return F.smooth_l1_loss(pred.float(), target.float(), beta=1.0)
