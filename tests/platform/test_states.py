"""The life of a job: which moves are legal, what users may ask."""

from __future__ import annotations

from itertools import pairwise

import pytest

from stoplab_platform.jobs.states import ACTIVE, MOVES, TERMINAL, State, allowed_actions


def test_every_state_has_its_moves() -> None:
    assert MOVES.keys() == set(State)


def test_terminal_is_final() -> None:
    assert {state for state in State if not MOVES[state]} == TERMINAL


def test_an_end_can_be_reached_from_everywhere() -> None:
    for start in State:
        reached, front = {start}, {start}
        while front:
            front = {to for state in front for to in MOVES[state]} - reached
            reached |= front
        assert reached & TERMINAL, start


@pytest.mark.parametrize(
    "path",
    [
        "QUEUED STARTING RUNNING SUCCEEDED",
        "QUEUED STARTING RUNNING RECOVERING RUNNING FAILED",
        "QUEUED STARTING STOPPING CANCELLED",
        "QUEUED PAUSED QUEUED CANCELLED",
        "RUNNING STOPPING PAUSED QUEUED STARTING",
    ],
)
def test_lives(path: str) -> None:
    states = [State(word) for word in path.split()]
    for present, then in pairwise(states):
        assert then in MOVES[present], (present, then)


@pytest.mark.parametrize(("present", "then"), [("QUEUED", "RUNNING"), ("PAUSED", "RUNNING")])
def test_no_attempt_without_admission(present: str, then: str) -> None:
    assert State(then) not in MOVES[State(present)]


def test_actions_match_the_moves() -> None:
    for state in State:
        actions = allowed_actions(state)
        can_stop = {State.STOPPING, State.CANCELLED} & MOVES[state]
        assert ("cancel" in actions) == bool(can_stop), state
        assert ("resume" in actions) == (state is State.PAUSED)
        assert ("retry" in actions) == (state in TERMINAL)
        if state in ACTIVE - {State.STOPPING}:
            assert "pause" in actions
