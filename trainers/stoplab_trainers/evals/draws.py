"""What the evaluations draw: the first counters of `Stream.EVAL`.

1 to 100 are the draws of low-shot rows, counted from 1.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stoplab_platform.randomness import Stream, generator

ORDER, AUGMENT, HEAD, BOOTSTRAP = 1001, 1002, 1003, 1004


def order(seed: int, epoch: int, num_rows: int) -> NDArray[np.int64]:
    """The rows of one epoch, shuffled: [num_rows]."""
    return generator(seed, Stream.EVAL, ORDER, epoch).permutation(num_rows)


def batches(seed: int, epoch: int, num_rows: int, size: int) -> list[NDArray[np.int64]]:
    """An epoch's rows in whole batches; the rest, other rows each time, is left out."""
    rows = order(seed, epoch, num_rows)
    return [rows[start : start + size] for start in range(0, num_rows - size + 1, size)]


def linear_layer(seed: int, number: int, inputs: int, outputs: int) -> nn.Linear:
    """A fresh layer as torch's own, even in +-1/sqrt(inputs), but drawn by seed and number."""
    with torch.device("meta"):  # torch's own start would move the global generator
        layer = nn.Linear(inputs, outputs)
    layer = layer.to_empty(device="cpu")
    random, reach = generator(seed, Stream.EVAL, HEAD, number), inputs**-0.5
    with torch.no_grad():
        for values in (layer.weight, layer.bias):
            drawn = random.uniform(-reach, reach, tuple(values.shape))
            values.copy_(torch.from_numpy(drawn))
    return layer
