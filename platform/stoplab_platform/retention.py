"""What is kept how long: checkpoints, logs, clients' keys, and a cache with a budget.

Only jobs that are finished are touched, and of them only checkpoints and logs: specs, results,
summaries, ledgers and reports stay. What an unfinished job may still need stays as well.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from uuid import uuid4

from stoplab_platform.elsewhere import discard, named, places
from stoplab_platform.errors import (
    DataAway,
    DataError,
    NotFound,
    RunnerUnavailable,
    SettingsError,
    StoreUnavailable,
)
from stoplab_platform.files import GONE, remove
from stoplab_platform.jobs.models import Job, JobQuery
from stoplab_platform.jobs.states import ACTIVE, TERMINAL, State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.paths import RunFolder
from stoplab_platform.rounds import Rounds
from stoplab_platform.settings import Settings
from stoplab_platform.tracking import sent_run_ids

log = logging.getLogger("stoplab.retention")

ACTOR = "retention"
LABEL = "keep"
"""A job that carries this label, whatever its value, is left alone."""
DAY_S = 24 * 3600.0
FIRST_AFTER_S, AGAIN_S = 60.0, 600.0
IN_USE_S = 3600.0
"""What was used so lately stays: a run that no store knows of may read it."""
PAGE = 200


@dataclass(frozen=True)
class Due:
    """Something that may go."""

    kind: Literal["checkpoints", "logs", "cache", "keys"]
    bytes: int
    count: int
    """Folders, or of keys the records."""
    job_id: str | None = None
    paths: tuple[Path, ...] = ()
    urls: tuple[str, ...] = ()
    """Of checkpoints that lie elsewhere."""


class Retention:
    """The policy of the settings, applied to one lab."""

    def __init__(
        self, store: JobStore, settings: Settings, forget: Callable[[Job], None] = lambda _job: None
    ) -> None:
        self._store, self._settings, self._forget = store, settings, forget
        self._now = datetime.now(UTC)

    def due(self) -> list[Due]:
        """All that the policy lets go now; nothing is changed."""
        return [*self._of_jobs(), *self._of_the_cache(), *self._of_keys()]

    def apply(self, items: Iterable[Due]) -> None:
        """Remove it, with an event for each job."""
        for item in items:
            if item.job_id is not None and not self._pruned(item.job_id, item):
                continue  # somebody needs it since we looked
            for path in item.paths:
                remove(path)
            if item.urls:
                self._discard(item)
            if item.kind == "logs" and item.job_id is not None:
                with suppress(NotFound, RunnerUnavailable):  # the runner has a copy of them
                    self._forget(self._store.get(item.job_id))
            if item.kind == "keys":
                self._store.forget_keys(self._before(self._settings.keep_keys_days))

    def _of_jobs(self) -> Iterator[Due]:
        days = (self._settings.keep_checkpoints_days, self._settings.keep_logs_days)
        if days == (None, None):
            return
        for job in self._jobs(TERMINAL):
            if LABEL in job.labels:
                continue
            folder, found = self._settings.folders.job(job.id), list[Due]()
            runs = list(folder.each_run())
            if self._is_older(job, days[0]):
                found += _found("checkpoints", job, [run.checkpoints for run in runs])
                found += self._elsewhere(job, runs)
            if self._is_older(job, days[1]):
                found += _found("logs", job, [folder.logs, *(run.logs for run in runs)])
            if found and self._store.heir(job.id, sent_run_ids(folder)) is None:
                yield from found

    def _elsewhere(self, job: Job, runs: Sequence[RunFolder]) -> Iterator[Due]:
        """Checkpoints in other places; those that cannot be asked now are left to another day."""
        known = {place.url for run in runs for place in places(run).all}
        alone = list(named(runs, self._settings.folders))  # what others need only loses this name
        try:
            sizes = [size for one in alone for size in one.sizes(self._settings, job.project)]
        except (DataAway, DataError, SettingsError, OSError) as error:
            log.warning("checkpoints of %s are looked at another day: %s", job.id, error)
            return
        if known:
            yield Due("checkpoints", sum(sizes), len(known), job.id, urls=tuple(sorted(known)))

    def _discard(self, item: Due) -> None:
        """Those of the job's runs, which have none elsewhere from then on."""
        assert item.job_id is not None
        runs = list(self._settings.folders.job(item.job_id).each_run())
        try:
            left = discard(runs, self._settings, self._store.get(item.job_id).project)
        except (DataAway, NotFound) as error:
            left = [str(error)]
        for sentence in left:
            log.warning("%s: %s", item.job_id, sentence)
        for run in runs if not left else ():
            run.elsewhere.unlink(missing_ok=True)

    def _pruned(self, job_id: str, item: Due) -> bool:
        return self._store.prune(
            job_id,
            actor=ACTOR,
            message=f"{item.kind}: {item.bytes} bytes",
            keep=LABEL,
            runs=sent_run_ids(self._settings.folders.job(job_id)),
        )

    def _of_the_cache(self) -> Iterator[Due]:
        """What was used longest ago, until the rest fits the budget."""
        budget = self._settings.cache_bytes
        if budget is None:
            return
        began = [job.started_at or job.created_at for job in self._jobs(ACTIVE)]
        in_use = min([self._now.timestamp() - IN_USE_S, *(at.timestamp() for at in began)])
        entries = sorted(_entries(self._settings.folders.cache), key=lambda entry: entry.used)
        excess = sum(entry.bytes for entry in entries) - budget
        for entry in entries:
            if excess <= 0 or entry.used >= in_use:
                return
            excess -= entry.bytes
            yield Due("cache", entry.bytes, 1, paths=(entry.path,))

    def _of_keys(self) -> Iterator[Due]:
        days = self._settings.keep_keys_days
        if days is not None and (count := self._store.count_keys(self._before(days))):
            yield Due("keys", 0, count)

    def _jobs(self, states: Iterable[State]) -> Iterator[Job]:
        cursor: str | None = None
        while True:
            page = self._store.list(JobQuery(states=tuple(states), limit=PAGE, cursor=cursor))
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def _is_older(self, job: Job, days: float | None) -> bool:
        if days is None or job.finished_at is None:
            return False
        return job.finished_at < self._before(days)

    def _before(self, days: float | None) -> datetime:
        assert days is not None
        return self._now - timedelta(days=days)


class Keeper:
    """Applies the policy once a day; a lease lets one replica do so."""

    def __init__(
        self,
        store: JobStore,
        settings: Settings,
        first_after_s: float = FIRST_AFTER_S,
        forget: Callable[[Job], None] = lambda _job: None,
    ) -> None:
        self._store, self._settings, self._forget = store, settings, forget
        self._holder = uuid4().hex
        self._rounds = Rounds("stoplab-retention", self._round, wait_s=first_after_s)

    def tidy(self) -> None:
        """Begin, if it is time."""
        self._rounds.begin()

    def close(self, timeout_s: float = 2.0) -> None:
        """Wait a little for what is under way; the next day takes up the rest."""
        self._rounds.wait(timeout_s)

    def _round(self) -> None:
        self._rounds.pause(AGAIN_S)
        try:
            # Kept until it runs out: so long nobody else has to do it again.
            if self._store.lease("retention", self._holder, DAY_S):
                retention = Retention(self._store, self._settings, self._forget)
                retention.apply(retention.due())
                self._rounds.pause(DAY_S)
        except StoreUnavailable:
            return  # in a while


@dataclass(frozen=True)
class _Entry:
    """A file or folder of the cache that goes as a whole."""

    path: Path
    bytes: int
    used: float
    """When it was last read or written (seconds since 1970)."""


def _entries(cache: Path) -> Iterator[_Entry]:
    for kind in cache.iterdir() if cache.is_dir() else ():
        for path in kind.iterdir() if kind.is_dir() else ():
            if path.suffix == ".lock":
                continue
            stats = list(_stats(path))
            used = max((max(s.st_atime, s.st_mtime) for s in stats), default=time.time())
            yield _Entry(path, sum(s.st_size for s in stats), used)


def _stats(path: Path) -> Iterator[os.stat_result]:
    """Of what is still there: runs take copies of shards away as well."""
    for file in _files(path):
        with suppress(FileNotFoundError):
            yield file.stat()


def _found(
    kind: Literal["checkpoints", "logs"], job: Job, folders: Sequence[Path]
) -> Iterator[Due]:
    there = tuple(folder for folder in folders if folder.is_dir())
    # And what an earlier removal left, when it was killed.
    there += tuple(left for folder in folders for left in folder.parent.glob(f"{GONE}{kind}-*"))
    if there:
        size = sum(file.lstat().st_size for folder in there for file in _files(folder))
        yield Due(kind, size, len(there), job.id, there)


def _files(path: Path) -> list[Path]:
    """A file, or all files of a folder."""
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
