"""Draws on the training device, a pure function of what they are for.

The same counters and mix as stoplab_platform.randomness, in wrapping int64, so that a row's noise
is the same on every rank, batch split and device (up to the last bits of log, sin and cos).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stoplab_platform import randomness
from stoplab_platform.randomness import Stream
from stoplab_platform.specs import RunSpec
from stoplab_trainers.hardware import compiles, sent

MASKED, CONTEXT = 0, 1  # counters of the two noises of a step


class Noise(NamedTuple):
    """Unit noise of a batch; None where the positions take none."""

    masked: Float[Tensor, "b block n noise"] | None
    context: Float[Tensor, "b k noise"] | None


class NoiseKeys(NamedTuple):
    """Of the rows' streams; None where the positions take no noise."""

    masked: Int64[Tensor, " row"] | None
    context: Int64[Tensor, " row"] | None


def draw_noise(
    spec: RunSpec,
    step: int,
    rows: slice,
    num_context: int,
    num_blocks: int,
    num_target: int,
    device: torch.device | str,
) -> Noise:
    """Unit noise of ``rows`` of the global batch at ``step``: encoder width, fp32.

    Predictor width for covariance `identity`. Tokens, blocks and images all get their own.
    """
    keys = noise_keys(spec, step, rows, device)
    return noise_of(spec, keys, num_context, num_blocks, num_target)


def noise_keys(spec: RunSpec, step: int, rows: slice, device: torch.device | str) -> NoiseKeys:
    """What the noise of a step's ``rows`` is a function of."""
    positions = spec.positions
    masked = context = None
    if positions.noise_std == 0:
        return NoiseKeys(masked, context)
    if positions.noise_on != "context":
        masked = row_keys(spec, step, rows, MASKED, device)
    if positions.noise_on != "masked":
        context = row_keys(spec, step, rows, CONTEXT, device)
    return NoiseKeys(masked, context)


def noise_of(
    spec: RunSpec, keys: NoiseKeys, num_context: int, num_blocks: int, num_target: int
) -> Noise:
    """Unit noise by its keys, where they lie."""
    narrow = spec.positions.noise_in == "predictor"
    width = spec.model.predictor.width if narrow else spec.model.sizes().width
    shapes = (num_blocks, num_target, width), (num_context, width)
    return Noise(*(_drawn(spec, own, shape) for own, shape in zip(keys, shapes, strict=True)))


def _drawn(
    spec: RunSpec, keys: Int64[Tensor, " row"] | None, shape: tuple[int, ...]
) -> Float[Tensor, "row ..."] | None:
    if keys is None:
        return None
    words = (math.prod(shape) + 1) // 2
    drawn = compiled_normal() if compiles(spec, keys.device) else normal
    return drawn(keys, counters(words, keys.device), shape)


def row_keys(
    spec: RunSpec, step: int, rows: slice, use: int, device: torch.device | str
) -> Int64[Tensor, " row"]:
    """The noise stream's keys of ``rows`` of the global batch."""
    index = np.arange(spec.optim.batch_size, dtype=np.int64)[rows]
    keys = randomness.row_keys(spec.seed, Stream.NOISE, step, use, rows=index)
    return sent(torch.from_numpy(keys.view(np.int64)), torch.device(device))


def normal(
    keys: Int64[Tensor, " row"], counters: Int64[Tensor, " word"], shape: tuple[int, ...]
) -> Float[Tensor, "row ..."]:
    """Standard normals in fp32, ``shape`` of them a row, by Box and Muller: two of each word."""
    bits = random_bits(keys, counters)
    high = ((bits >> 32) & 0xFFFFFFFF).float()
    low = (bits & 0xFFFFFFFF).float()
    radius = torch.sqrt(-2.0 * torch.log((high + 0.5) * 2.0**-32))
    angle = low * (2.0 * math.pi * 2.0**-32)
    pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=2)
    return pairs.flatten(1)[:, : math.prod(shape)].reshape(len(keys), *shape)


@cache
def compiled_normal() -> Callable[[Tensor, Tensor, tuple[int, ...]], Tensor]:
    """`normal` as one kernel: thirty small ones would each read and write all of its memory."""
    return torch.compile(normal, dynamic=True)


def random_bits(
    keys: Int64[Tensor, " row"], counters: Int64[Tensor, " word"]
) -> Int64[Tensor, "row word"]:
    """The first 64-bit words of each row's stream (as stoplab_platform draws them)."""
    value = keys[:, None] + counters
    value = (value ^ _shift(value, 30)) * _signed(randomness.MIX_1)
    value = (value ^ _shift(value, 27)) * _signed(randomness.MIX_2)
    return value ^ _shift(value, 31)


def counters(count: int, device: torch.device) -> Int64[Tensor, " count"]:
    """What the first words of all streams count by.

    Not in what is compiled: there a range is an index, for which Triton takes 32 bits where they
    suffice, and GAMMA does not fit into them.
    """
    return torch.arange(1, count + 1, device=device) * _signed(randomness.GAMMA)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _shift(value: Tensor, by: int) -> Tensor:
    """A logical shift to the right: torch's own carries the sign along."""
    return (value >> by) & ((1 << (64 - by)) - 1)
