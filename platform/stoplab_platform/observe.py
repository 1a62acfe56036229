"""What the reconciler has seen so far of each job, by its own monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from stoplab_platform.decide import Patience, Seen
from stoplab_platform.errors import RunnerUnavailable
from stoplab_platform.handoff import (
    Heartbeat,
    read_heartbeat,
    read_news,
    read_result,
    read_stop,
)
from stoplab_platform.ids import submission_id
from stoplab_platform.jobs.models import Job
from stoplab_platform.jobs.states import State
from stoplab_platform.paths import Home
from stoplab_platform.runner.base import Observed, Runner, RunnerState


@dataclass
class Watch:
    """Times of one job's attempt in one state."""

    key: tuple[object, ...]
    since: float
    told: float
    beat: Heartbeat | None
    beat_at: float


class Observer:
    """Looks at files, and at the runner where they leave a question."""

    def __init__(
        self,
        home: Home,
        runner: Runner,
        patience: Patience,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home, self._runner, self._clock = home, runner, clock
        self._fresh_s = patience.quiet_s / 2
        """A heartbeat that young needs no word of the runner."""
        self._watches: dict[str, Watch] = {}
        self._away = False

    def begin(self, jobs: Iterable[Job]) -> None:
        """Start a pass: forget jobs that are gone, ask the runner again."""
        ids = {job.id for job in jobs}
        self._watches = {key: watch for key, watch in self._watches.items() if key in ids}
        self._away = False

    def look(self, job: Job) -> Seen:
        """What is to be seen now; the store's part is left to the caller."""
        folder = self._home.job(job.id)
        beat = read_heartbeat(folder)
        if beat is not None and beat.attempt != job.attempt:
            beat = None
        now = self._clock()
        watch = self._watch(job, beat, now)
        result = read_result(folder, job.attempt)
        word = None
        if result is None and self._wants_word(job, beat, now - watch.beat_at):
            word = self._ask(job)
            if word is None or word.state is RunnerState.PENDING:
                watch.told = now
            elif word.state.over:
                result = read_result(folder, job.attempt)  # its last act, perhaps since we looked
        order = read_stop(folder, job.attempt)
        return Seen(
            waited_s=now - watch.since,
            told_s=now - max(watch.since, watch.told),
            beating=beat is not None,
            quiet_s=now - watch.beat_at,
            result=result,
            runner=word,
            stop_asked=order is not None and order.intent is job.intent,
            news=read_news(folder.run("run"), job.attempt) if _has_news(job) else None,
        )

    def _watch(self, job: Job, beat: Heartbeat | None, now: float) -> Watch:
        key = (job.state, job.attempt, job.intent)
        watch = self._watches.get(job.id)
        if watch is None or watch.key[1] != job.attempt:
            watch = Watch(key, now, now, beat, now)
        if watch.key != key:
            watch.key, watch.since = key, now
        if watch.beat != beat:
            watch.beat, watch.beat_at = beat, now
        self._watches[job.id] = watch
        return watch

    def _ask(self, job: Job) -> Observed | None:
        """The runner's word; after one silence it is not asked again in this pass."""
        if self._away:
            return None
        try:
            return self._runner.observe(submission_id(job.id, job.attempt))
        except RunnerUnavailable:
            self._away = True
            return None

    def _wants_word(self, job: Job, beat: Heartbeat | None, quiet_s: float) -> bool:
        return job.state is State.STOPPING or beat is None or quiet_s > self._fresh_s


def _has_news(job: Job) -> bool:
    """Only runs whose workers may change while they go on have any."""
    changes = job.spec.get("compute", {}).get("min_workers") is not None
    return changes and job.state is State.RUNNING
