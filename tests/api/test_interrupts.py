"""Requests to end are heard, wherever they come upon the program."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from stoplab_api.cli.interrupts import interruptible


class Dying:
    """A signal comes while its destructor runs, out of which Python lets nothing be raised."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)
        for _ in range(1000):  # the handler runs between these
            pass
        raise AssertionError("the signal was not handled here")


def interrupted(begin: Callable[[], object]) -> None:
    """Begin something, and wait for an interrupt; not for ever."""
    with interruptible():
        begin()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            time.sleep(0.01)


@pytest.fixture(params=[signal.SIGTERM, signal.SIGHUP])
def number(request: pytest.FixtureRequest) -> Iterator[int]:
    """A request to end, which is not ignored, as it is of tests that run under `nohup`."""
    before = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, before)


def test_a_request_interrupts(number: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        interrupted(lambda: os.kill(os.getpid(), number))


def test_a_request_that_comes_in_a_destructor_is_not_lost(number: int) -> None:
    before = sys.unraisablehook, signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt):
        interrupted(lambda: Dying(number) and None)
    assert (sys.unraisablehook, signal.getsignal(number)) == before


def test_what_was_ignored_stays_so(number: int) -> None:
    signal.signal(number, signal.SIG_IGN)
    with interruptible():
        os.kill(os.getpid(), number)
        assert signal.getsignal(number) == signal.SIG_IGN
