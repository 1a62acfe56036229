"""Random streams: functions of what they are for, independent of each other, even enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoplab_platform.randomness import Stream, generator, mix, row_keys, uniforms

ROWS = np.arange(4096)
seeds = st.integers(0, 2**31 - 1)
counters = st.integers(0, 2**31 - 1)


@given(seeds, st.sampled_from(Stream), counters, st.integers(1, 63))
def test_a_part_of_the_rows_gets_what_the_whole_gets(
    seed: int, stream: Stream, counter: int, cut: int
) -> None:
    whole = row_keys(seed, stream, counter, rows=np.arange(64))
    parts = [row_keys(seed, stream, counter, rows=r) for r in np.split(np.arange(64), [cut])]
    assert (np.concatenate(parts) == whole).all()


@given(seeds, st.integers(0, 100), st.integers(1, 20))
def test_a_row_is_one_sequence_read_from_anywhere(seed: int, offset: int, count: int) -> None:
    keys = row_keys(seed, Stream.AUGMENT, rows=np.arange(3))
    whole = uniforms(keys, offset + count)
    assert (uniforms(keys, count, offset=offset) == whole[:, offset:]).all()


@given(seeds, counters)
def test_streams_and_counters_share_no_number(seed: int, step: int) -> None:
    draws = [uniforms(row_keys(seed, s, step, rows=np.arange(4)), 4) for s in Stream]
    draws += [uniforms(row_keys(seed, Stream.MASK, step + 1, rows=np.arange(4)), 4)]
    draws += [uniforms(row_keys(seed + 1, Stream.MASK, step, rows=np.arange(4)), 4)]
    flat = np.concatenate([draw.ravel() for draw in draws])
    assert len(np.unique(flat)) == len(flat)


@given(seeds, st.sampled_from(Stream), st.lists(counters, max_size=3))
def test_generators_repeat(seed: int, stream: Stream, uses: list[int]) -> None:
    first, second = (generator(seed, stream, *uses).random(5) for _ in range(2))
    assert (first == second).all()
    others = [generator(seed, other).random() for other in Stream]
    assert len(set(others)) == len(others)


def test_uniforms_are_even_over_rows_and_along_them() -> None:
    draws = uniforms(row_keys(0, Stream.NOISE, 3, rows=ROWS), 64)
    assert 0 <= draws.min()
    assert draws.max() < 1
    for values in (draws[0:64].ravel(), draws[:, 0], draws[:, 63]):
        histogram = np.histogram(values, bins=16, range=(0, 1))[0]
        expected = len(values) / 16
        chi_square = ((histogram - expected) ** 2 / expected).sum()
        assert chi_square < 44.3  # 15 degrees of freedom, p = 1e-4


def test_neighbouring_rows_and_draws_are_uncorrelated() -> None:
    draws = uniforms(row_keys(0, Stream.MASK, 0, rows=ROWS), 8) - 0.5
    for a, b in ((draws[:-1, 0], draws[1:, 0]), (draws[:, 0], draws[:, 1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / len(a) ** 0.5


def test_mix_is_splitmix64() -> None:
    """The published generator at seed 0, whose first outputs are known."""
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(i * gamma) % 2**64 for i in (1, 2, 3)], dtype=np.uint64)
    assert [int(x) for x in mix(states)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


@pytest.mark.parametrize("stream", Stream)
def test_rows_have_keys_of_their_own(stream: Stream) -> None:
    assert len(np.unique(row_keys(1, stream, 2, rows=ROWS))) == len(ROWS)
