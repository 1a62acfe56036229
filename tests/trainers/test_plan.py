"""Which sample at which step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoplab_platform.errors import DataError
from stoplab_trainers.data.plan import Plan, share

Facts = tuple[list[int], int, int, int | None]  # counts, batch size, seed, window


@st.composite
def sets(draw: st.DrawFn) -> Facts:
    counts = draw(st.lists(st.integers(1, 40), min_size=1, max_size=8))
    batch_size = draw(st.integers(1, min(sum(counts), 24)))
    return counts, batch_size, draw(st.integers(0, 2**31 - 1)), draw(st.none() | st.integers(1, 10))


def epoch(plan: Plan, number: int) -> np.ndarray:
    first = number * plan.steps_per_epoch
    return np.concatenate([plan.ids(first + step) for step in range(plan.steps_per_epoch)])


@settings(deadline=None)
@given(sets(), st.integers(0, 5))
def test_an_epoch_shows_each_sample_at_most_once_and_leaves_out_less_than_a_batch(
    facts: Facts, number: int
) -> None:
    plan = Plan(*facts)
    seen, size, batch = epoch(plan, number), sum(facts[0]), facts[1]
    assert len(np.unique(seen)) == len(seen) == size - size % batch
    assert seen.min() >= 0
    assert seen.max() < size
    steps = {plan.epoch(number * plan.steps_per_epoch + i) for i in range(plan.steps_per_epoch)}
    assert steps == {number}


@settings(deadline=None)
@given(sets(), st.lists(st.integers(0, 100), max_size=8))
def test_a_step_asked_for_in_any_order_by_anybody_is_the_same(
    facts: Facts, steps: list[int]
) -> None:
    plan = Plan(*facts)
    for step in steps:
        np.testing.assert_array_equal(plan.ids(step), Plan(*facts).ids(step))


@settings(deadline=None)
@given(st.integers(1, 16), st.integers(1, 16))
def test_the_ranks_share_a_batch_without_gap_or_overlap(world: int, rows: int) -> None:
    ids = np.arange(world * rows)
    parts = [ids[share(len(ids), rank, world)] for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate(parts), ids)
    assert len({len(part) for part in parts}) == 1


def test_epochs_and_seeds_differ_and_so_do_the_samples_left_out() -> None:
    plan, other = Plan([100], 32, seed=0), Plan([100], 32, seed=1)
    orders = [epoch(plan, number) for number in range(6)]
    assert len({tuple(order) for order in orders}) == 6
    assert not np.array_equal(epoch(plan, 0), epoch(other, 0))
    left_out = [frozenset(range(100)) - set(order) for order in orders]
    assert len(set(left_out)) == 6
    assert all(len(out) == 4 for out in left_out)


def test_a_window_keeps_samples_near_where_they_lie() -> None:
    counts = [10] * 6
    windowed, free = Plan(counts, 20, 0, window_shards=2), Plan(counts, 20, 0)
    for step in range(6):  # batches end where windows end
        assert len(set(windowed.ids(step) // 10)) == 2
        assert len(set(free.ids(step) // 10)) > 2
    first = [frozenset(windowed.ids(3 * number) // 10) for number in range(8)]
    assert len(set(first)) > 1, "the shards are shuffled anew each epoch"
    order = windowed.ids(0)
    assert not np.array_equal(order, np.sort(order)), "and so are the samples in a window"


@settings(deadline=None)
@given(sets(), st.integers(1, 10), st.integers(0, 5))
def test_windows_stream_no_more_shards_are_open_than_a_window_has(
    facts: Facts, window: int, number: int
) -> None:
    counts, batch_size, seed, _ = facts
    order = epoch(Plan(counts, batch_size, seed, window), number)
    shards = np.searchsorted(np.cumsum(counts), order, side="right")
    spans = [np.flatnonzero(shards == shard)[[0, -1]] for shard in np.unique(shards)]
    opened, closed = np.sort(np.array(spans), axis=0).T
    for position in range(len(order)):
        assert np.sum(opened <= position) - np.sum(closed < position) <= window


@settings(deadline=None)
@given(st.lists(st.integers(1, 60), min_size=8, max_size=16), st.none() | st.integers(1, 8))
def test_the_global_batch_is_the_same_for_any_number_of_ranks(
    counts: list[int], window: int | None
) -> None:
    counts = [*counts, 48]
    for step in (0, 1, 7):
        expected = Plan(counts, 48, 3, window).ids(step)
        for world in (1, 2, 3, 4, 8):
            plans = [Plan(counts, 48, 3, window) for _ in range(world)]
            parts = [plan.ids(step)[share(48, rank, world)] for rank, plan in enumerate(plans)]
            assert {len(part) for part in parts} == {48 // world}
            np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_batches_may_cross_windows() -> None:
    plan = Plan([3, 4, 2, 5, 1], 4, seed=3, window_shards=1)
    seen = epoch(plan, 0)
    assert len(set(seen)) == 12
    shards = np.searchsorted([3, 7, 9, 14], seen, side="right")
    assert np.count_nonzero(np.diff(shards)) <= 4, "one shard after the other"
    assert len(set(shards[:4])) > 1


def test_a_set_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(DataError, match=r"8 samples.*optim\.batch_size 8 or less"):
        Plan([5, 3], 9, seed=0)
