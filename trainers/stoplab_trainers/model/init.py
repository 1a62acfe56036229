"""First weights, drawn by parameter name: an added parameter moves no other.

`published` (I-JEPA and StoP code): every matrix, the patch embedding and the mask token from a
normal of std 0.02 (their truncation at +-2 lies 100 deviations out), biases 0, norms 1 and 0; the
scaling by depth in their constructors is undone by a later pass, so the released models had none.
`small`: matrices Xavier-uniform, patch embedding N(0, 1 / fan_in), else as above.
"""

from __future__ import annotations

from typing import Literal
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stoplab_platform.randomness import Stream, generator
from stoplab_trainers.model.positions import sincos_2d

Start = Literal["published", "small"]
PUBLISHED_STD = 0.02


@torch.no_grad()
def initialise(model: nn.Module, start: Start, seed: int) -> None:
    """Sets every parameter of ``model`` in place, from (seed, its name, its shape)."""
    for name, parameter in model.named_parameters():
        if name.endswith("pos_embed"):
            _, patches, width = parameter.shape
            parameter.copy_(sincos_2d(width, round(patches**0.5))[None])
        elif parameter.ndim == 1:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            rng = generator(seed, Stream.INIT, crc32(name.encode()))
            parameter.copy_(torch.from_numpy(_draw(rng, parameter, start)))


def _draw(rng: np.random.Generator, parameter: Tensor, start: Start) -> NDArray[np.float32]:
    shape = tuple(parameter.shape)
    if start == "small" and parameter.ndim == 2:
        bound = np.float32((6 / sum(shape)) ** 0.5)
        return (2 * rng.random(shape, np.float32) - 1) * bound
    small_patches = start == "small" and parameter.ndim == 4
    std = parameter[0].numel() ** -0.5 if small_patches else PUBLISHED_STD
    return rng.standard_normal(shape, np.float32) * np.float32(std)
