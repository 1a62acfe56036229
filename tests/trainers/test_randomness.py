"""Noise on the training device: the platform's numbers, normal, and the same on any split."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stoplab_platform.randomness import Stream, row_keys, uniforms
from stoplab_trainers.randomness import counters, draw_noise, normal, random_bits
from support_models import NO_NOISE
from support_runs import tiny


def keys(count: int, seed: int = 0) -> torch.Tensor:
    drawn = row_keys(seed, Stream.NOISE, rows=np.arange(count))
    return torch.from_numpy(drawn.view(np.int64))


def numbers(keys: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    words = counters((math.prod(shape) + 1) // 2, keys.device)
    return normal(keys, words, shape)


@settings(deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 40))
def test_words_are_those_of_the_platform(seed: int, count: int) -> None:
    drawn = row_keys(seed, Stream.NOISE, rows=np.arange(5))
    words = counters(count, torch.device("cpu"))
    bits = random_bits(torch.from_numpy(drawn.view(np.int64)), words).numpy().view(np.uint64)
    assert ((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53 == uniforms(drawn, count)).all()


def test_draws_are_standard_normal() -> None:
    values = numbers(keys(512), (40, 25)).double().flatten()
    assert values.isfinite().all()
    assert stats.kstest(values.numpy(), "norm").pvalue > 1e-3
    count = len(values)
    assert abs(values.mean()) < 4 / count**0.5
    assert abs(values.var() - 1) < 4 * (2 / count) ** 0.5
    assert 4.3 < values.abs().max() < 6.8  # tails are neither cut nor endless


def test_the_two_of_a_pair_and_neighbours_are_uncorrelated() -> None:
    values = numbers(keys(20_000), (4,)).double()
    table = torch.corrcoef(values.T) - torch.eye(4)
    rows = torch.corrcoef(torch.stack([values[:-1].flatten(), values[1:].flatten()]))[0, 1]
    limit = 5 / len(values) ** 0.5
    assert table.abs().max() < limit
    assert abs(rows) < limit
    squares = torch.corrcoef(values.square().T) - torch.eye(4)
    assert squares.abs().max() < limit


def test_extreme_words_give_finite_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    words = torch.tensor([[0, -1, 2**63 - 1, -(2**63)]])
    monkeypatch.setattr("stoplab_trainers.randomness.random_bits", lambda keys, counters: words)
    values = numbers(torch.zeros(1, dtype=torch.int64), (8,))
    assert values.isfinite().all()
    assert values.abs().max() < 7


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(1, 9))
def test_shape_and_split_change_no_number(shape: list[int], cut: int) -> None:
    whole = numbers(keys(10), tuple(shape))
    assert whole.shape == (10, *shape)
    assert whole.dtype == torch.float32
    flat = numbers(keys(10), (math.prod(shape),))
    assert torch.equal(whole.flatten(1), flat)
    parts = [numbers(part, tuple(shape)) for part in (keys(10)[:cut], keys(10)[cut:])]
    assert torch.equal(torch.cat(parts), whole)


def noise(step: int = 0, rows: slice = slice(0, 8), **changes: Any) -> Any:
    return draw_noise(tiny(**changes), step, rows, 5, 3, 4, "cpu")


class TestDrawNoise:
    def test_shapes_follow_the_positions(self) -> None:
        wide = {"model__width": 20, "model__predictor.width": 12}
        both = noise(positions__noise_on="both", **wide)
        assert both.masked.shape == (8, 3, 4, 20)
        assert both.context.shape == (8, 5, 20)
        identity = noise(positions__noise_on="both", positions__covariance="identity", **wide)
        assert identity.masked.shape == (8, 3, 4, 12)
        assert identity.context.shape == (8, 5, 12)
        assert noise(positions__noise_on="masked").context is None
        assert noise(positions__noise_on="context").masked is None

    @pytest.mark.parametrize(
        "changes", [{"positions__kind": "deterministic"}, {"positions__noise_std": 0.0}]
    )
    def test_none_is_drawn_where_none_is_used(self, changes: dict[str, Any]) -> None:
        assert noise(**changes) == NO_NOISE

    @pytest.mark.invariant(23)
    def test_ranks_draw_their_part_of_the_batch(self) -> None:
        whole = noise(rows=slice(0, 64), positions__noise_on="both")
        for start in (0, 16, 48):
            part = noise(rows=slice(start, start + 16), positions__noise_on="both")
            assert torch.equal(part.masked, whole.masked[start : start + 16])
            assert torch.equal(part.context, whole.context[start : start + 16])

    def test_steps_seeds_and_uses_have_noise_of_their_own(self) -> None:
        drawn = [
            noise().masked,
            noise(step=1).masked,
            noise(seed=1).masked,
            noise(positions__noise_on="both").context,
        ]
        flat = torch.stack([tensor.flatten()[:600] for tensor in drawn])
        assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 5 / 600**0.5
        assert torch.equal(drawn[0], noise().masked)

    @pytest.mark.invariant(6)
    def test_tokens_images_and_blocks_are_uncorrelated(self) -> None:
        """METHOD 4.1.6: so the same patch in two blocks gets two noises."""
        drawn = torch.stack([noise(step=s, rows=slice(0, 2)).masked for s in range(600)])
        series = drawn.permute(1, 2, 3, 0, 4).flatten(3).flatten(0, 2)  # 24 tokens
        table = torch.corrcoef(series.double()) - torch.eye(24)
        assert table.abs().max() < 5 / series.shape[1] ** 0.5

    def test_torchs_own_generator_is_left_alone(self) -> None:
        before = torch.get_rng_state()
        noise(positions__noise_on="both")
        assert torch.equal(torch.get_rng_state(), before)

    def test_noise_scale_is_not_in_the_draw(self) -> None:
        assert torch.equal(noise(positions__noise_std=2.0).masked, noise().masked)
