"""Watching a job from a terminal, or from a log file."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from stoplab_api.bodies import JobBody
from stoplab_api.cli.show import errors
from stoplab_api.client import Client
from stoplab_platform.exits import Exit

LINE_S = 10.0  # between two lines where there is no terminal
STUDIES = ("sweep", "compare")


class Paused(Exception):
    """The job will not go on by itself."""


class Watcher:
    """Shows each look at a job: a bar on a terminal, else a line now and then. On stderr."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or errors()
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[eta]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("", count="", speed="", eta="", total=None)
        self._last: tuple[str, float] = ("", 0.0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def see(self, job: JobBody) -> None:
        """Show where the job is."""
        progress = job.status.progress
        self._bar.update(
            self._task,
            description=f"{job.name} {_state(job)}",
            count=_count(job),
            speed=_speed(job),
            eta=_eta(job),
            completed=progress.step if progress else 0,
            total=progress.steps if progress else None,
        )
        if self._bar.disable:
            self._line(job)

    def _line(self, job: JobBody) -> None:
        state, at = self._last
        now = time.monotonic()
        if job.status.state == state and now - at < LINE_S:
            return
        self._last = (job.status.state, now)
        words = (job.id, _state(job), _count(job), _speed(job), _eta(job))
        text = "  ".join(word for word in words if word)
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def watch(
    client: Client, job_id: str, *, also: Callable[[], None] | None = None, poll_s: float = 1.0
) -> JobBody:
    """Show a job until it has ended or paused; ``also`` is called at every look."""
    last: list[JobBody] = []

    def see(job: JobBody) -> None:
        last[:] = [job]
        watcher.see(job)
        if also is not None:
            also()
        if job.status.state == "PAUSED":
            raise Paused

    with Watcher() as watcher:
        try:
            return client.wait(job_id, poll_s=poll_s, seen=see)
        except Paused:
            return last[0]


def progress_line(job: JobBody) -> str:
    """Where a job is, in a line."""
    words = (job.name, _state(job), _count(job), _speed(job), _eta(job))
    return "  ".join(word for word in words if word)


def why(job: JobBody) -> str | None:
    """What keeps a job, or ended it, in a few words."""
    status = job.status
    if status.queue is not None:
        return f"{status.queue.position}. in the queue: {status.queue.reason}"
    return status.reason_code


def exit_code(job: JobBody) -> Exit:
    """How a job that was watched ended, as an exit code."""
    if job.status.state == "SUCCEEDED":
        return Exit.OK
    return Exit.STOPPED if job.status.state == "PAUSED" else Exit.FAILED


def _state(job: JobBody) -> str:
    status = job.status
    if status.queue is not None:
        return f"{status.state} ({status.queue.position}.: {status.queue.reason})"
    if status.state == "RECOVERING":
        return f"{status.state} ({status.reason_code}, attempt {status.attempt})"
    return status.state


def _count(job: JobBody) -> str:
    progress = job.status.progress
    if progress is None:
        return ""
    return f"{progress.step}/{progress.steps} {'runs' if job.kind in STUDIES else 'steps'}"


def _speed(job: JobBody) -> str:
    progress = job.status.progress
    if progress is None or not progress.samples_per_s:
        return ""
    return f"{progress.samples_per_s:.0f} samples/s"


def _eta(job: JobBody) -> str:
    progress = job.status.progress
    if progress is None or progress.eta_s is None:
        return ""
    minutes, seconds = divmod(round(progress.eta_s), 60)
    return f"about {minutes}:{seconds:02d} to go"
