"""Notices a run that makes no more steps, says who stands where, and ends the process.

A rank waits in a collective without end for one that is stopped, cut off or blocked by a file
system. Each rank watches itself: it leaves its stacks in its log and ends with `Exit.HUNG`, and
Ray Train or the supervisor starts anew from the last checkpoint. It also ends a process whose
folder a newer group of workers has taken, whatever that process waits for.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecodeError

from stoplab_platform.errors import StoplabError
from stoplab_platform.exits import Exit
from stoplab_platform.paths import RunFolder
from stoplab_trainers.loop import Run, StepReport, World
from stoplab_trainers.roll import SILENT_S, Roll

log = logging.getLogger("stoplab.train")

Hook = Callable[[Run, StepReport], None]
BEAT_S = 1.0
TICK_S = 0.25
USUAL_STEPS = 20  # of a run's own pace, where these take longer than the limit
FIRST_STEP = 5  # times the limit: it compiles, and fills caches
TELL_S = 5.0  # a file system that hangs is not waited for
LINGER_S = 2.0  # so that other ranks leave their stacks as well


class Hung(StoplabError):
    """A run made no more steps, and ended itself as often as it may be started anew."""


class Watchdog:
    """Watches one rank while the block lasts; as a hook it hears of each step.

    ``limit_s``: seconds without a step that are a hang; None: however long it takes.
    """

    def __init__(self, folder: RunFolder, world: World, limit_s: float | None = None) -> None:
        self._folder, self._world, self._limit_s = folder, world, limit_s
        self._roll = Roll(folder, world)
        self._over = threading.Event()
        self._beating, self._judging = (  # two, for one waits for files and the other must not
            threading.Thread(target=work, name=f"stoplab{work.__name__}", daemon=True)
            for work in (self._beat, self._judge)
        )
        self._training = False  # else nothing is due
        self._signs = 0  # that something goes on
        self._step, self._usual_s = 0, 0.0
        self._first_busy_at = float("-inf")

    def __enter__(self) -> Watchdog:
        """Take the run's folder; all ranks call. Fenced where a newer attempt has it.

        That is their first exchange, and takes for ever where their network does not work.
        """
        self._judging.start()
        try:
            with self.training(0):
                self._roll.take()
        except BaseException:
            self._over.set()
            raise
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in (self._judging, self._beating):
            thread.join(TELL_S)

    def __call__(self, run: Run, report: StepReport) -> None:
        """A step is done."""
        weight = 0.1 if self._usual_s else 1.0
        self._usual_s += weight * (report.seconds - self._usual_s)
        self._step, self._signs = report.step, self._signs + 1

    @contextmanager
    def training(self, from_step: int) -> Iterator[None]:
        """Within it a step is due before long, but for what is done `patiently`."""
        self._step = from_step
        self._set(training=True)
        try:
            yield
        finally:
            self._set(training=False)

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Within it rank 0 may take its time; the others wait as long as it lives."""
        self._set(training=False)
        try:
            yield
        finally:
            self._set(training=True)

    def patiently(self, hook: Hook) -> Hook:
        """A hook that is called with `patience`."""

        def patient(run: Run, report: StepReport) -> None:
            with self.patience():
                hook(run, report)

        return patient

    def _set(self, *, training: bool) -> None:
        self._training, self._signs = training, self._signs + 1

    def _beat(self) -> None:
        """Tell others of this rank, and look whether it is still wanted."""
        while not self._over.is_set():
            try:
                self._roll.beat(self._step, self._training)
                if self._world.rank > 0 and self._roll.first_is_busy():
                    self._first_busy_at = time.monotonic()
                if self._roll.lost() and not self._over.is_set():
                    log.warning("other workers have taken this run on: this process ends")
                    os._exit(Exit.FENCED)
            except (OSError, JSONDecodeError):
                pass  # files that are away for a moment end nothing
            self._over.wait(BEAT_S)

    def _judge(self) -> None:
        signs, quiet_s, at = -1, 0.0, time.monotonic()
        while not self._over.wait(TICK_S):
            now = time.monotonic()
            # A process that was stopped as a whole, as by Ctrl-Z, has not waited meanwhile.
            quiet_s, at = quiet_s + min(now - at, 4 * TICK_S), now
            waits_for_first = now - self._first_busy_at < SILENT_S
            if not self._training or waits_for_first or signs != self._signs:
                signs, quiet_s = self._signs, 0.0
            elif self._limit_s is not None and quiet_s > (limit_s := self._patience(self._limit_s)):
                self._end(quiet_s, limit_s)

    def _patience(self, limit_s: float) -> float:
        if self._usual_s == 0:
            return FIRST_STEP * limit_s
        return max(limit_s, USUAL_STEPS * self._usual_s)

    def _end(self, quiet_s: float, limit_s: float) -> None:
        """Say what is known, as far as files can be written, and go."""
        words = (quiet_s, limit_s)
        teller = threading.Thread(target=self._tell, args=words, name="stoplab-hung", daemon=True)
        teller.start()
        teller.join(TELL_S)
        if self._over.wait(LINGER_S):
            return  # it went on after all
        os._exit(Exit.HUNG)

    def _tell(self, quiet_s: float, limit_s: float) -> None:
        message = (
            f"rank {self._world.rank} finished no step for {quiet_s:.0f} s (at most {limit_s:.0f} "
            f"s, compute.hang_timeout_s): {self._roll.standing()}"
        )
        log.error("Hung: %s; the stacks of all threads follow in the rank's log", message)
        with self._folder.rank_log(self._world.rank).open("ab") as file:
            faulthandler.dump_traceback(file)
        self._roll.leave_hung(message)
