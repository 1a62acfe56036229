"""SIGTERM and SIGHUP as KeyboardInterrupt, so that what is started is ended by any of them."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a type of the stubs alone
    from sys import UnraisableHookArgs

AGAIN_S = 0.1
"""After which an interrupt that was lost comes again: longer than what had it lost takes."""


@contextmanager
def interruptible() -> Iterator[None]:
    """While the block lasts, a request to end raises KeyboardInterrupt in it.

    What was ignored stays so: `nohup` wants to outlive its terminal.
    """
    heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    last = signal.SIGINT  # is Python's own to hear
    timers: list[threading.Timer] = []

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal last
        last = signal.Signals(number)
        raise KeyboardInterrupt

    def lost(raised: UnraisableHookArgs) -> None:
        """Python drops what a destructor or the callback of a weak reference raises."""
        if raised.exc_type is not KeyboardInterrupt:
            hook(raised)
            return
        ours = threading.main_thread().ident
        assert ours is not None
        timers.append(threading.Timer(AGAIN_S, signal.pthread_kill, (ours, last)))
        timers[-1].daemon = True
        timers[-1].start()

    before = {number: signal.signal(number, interrupt) for number in heard}
    hook, sys.unraisablehook = sys.unraisablehook, lost
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
