"""Randomness is a function, not a state: every draw follows from what it is for.

A draw is named by (seed, stream, counters..., row): never by a rank, a worker or a call's
order. Rows (samples of a batch) have keys of their own, so that any part of a batch can be drawn
anywhere. The mixing is SplitMix64's finaliser over a counter (Steele et al., OOPSLA 2014),
keyed by NumPy's SeedSequence.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

GAMMA = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB

Keys = NDArray[np.uint64]


class Stream(IntEnum):
    """What a draw is for; streams never share numbers."""

    INIT = 0
    ORDER = 1
    AUGMENT = 2
    MASK = 3
    NOISE = 4
    EVAL = 5


def generator(seed: int, stream: Stream, *counters: int) -> np.random.Generator:
    """A NumPy generator (Philox) of its own for one use."""
    sequence = np.random.SeedSequence([seed, int(stream), *counters])
    return np.random.Generator(np.random.Philox(sequence))


def row_keys(seed: int, stream: Stream, *counters: int, rows: NDArray[np.int64]) -> Keys:
    """One 64-bit key a row; ``rows`` are sample ids, or indices in the global batch."""
    sequence = np.random.SeedSequence([seed, int(stream), *counters])
    root = sequence.generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        return mix(root + rows.astype(np.uint64) * np.uint64(GAMMA))


def uniforms(keys: Keys, count: int, *, offset: int = 0) -> NDArray[np.float64]:
    """``count`` numbers in [0, 1) a row, the row's stream read from ``offset``: [row, count]."""
    return (bits(keys, count, offset=offset) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def bits(keys: Keys, count: int, *, offset: int = 0) -> Keys:
    """The 64 bits behind each of `uniforms`' numbers: no two of a row are equal."""
    counters = np.arange(offset + 1, offset + count + 1, dtype=np.uint64)
    return mix(keys[:, None] + counters * np.uint64(GAMMA))


def mix(value: Keys) -> Keys:
    """SplitMix64's finaliser: a bijection that scatters neighbouring counters."""
    with np.errstate(over="ignore"):
        value = (value ^ (value >> np.uint64(30))) * np.uint64(MIX_1)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(MIX_2)
        return value ^ (value >> np.uint64(31))
