"""Remote shards before they are read: this window's, then the next one's.

A rank fetches the shards that its own rows of the batches name. When the last batch of a window is
read, its files are closed, so that the cache can let its copies go for those of a window to come.
Where the batches in the making read from more than one window, as many more are held. Nothing
here changes a batch: a shard that is not there yet is fetched by who reads it.
"""

from __future__ import annotations

import logging
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from stoplab_platform.errors import DataError, StoplabError
from stoplab_platform.settings import Settings
from stoplab_trainers.data.plan import Plan
from stoplab_trainers.data.shards import ShardSet

log = logging.getLogger("stoplab.data")

FETCHERS = 4  # shards that one rank fetches ahead at once
Window = tuple[int, int]


class Prefetch:
    """Follows the steps of one rank; ``ahead``: batches that are in the making beside the newest.

    Nothing is fetched for steps from ``stop_step`` on. Does nothing where every shard is a plain
    tar of this machine. DataError where the cache may not hold what the plan needs at once.
    """

    def __init__(
        self, shards: ShardSet, plan: Plan, rank: int, world: int, *, ahead: int, stop_step: int
    ) -> None:
        self._shards, self._plan, self._rank, self._world = shards, plan, rank, world
        self._last_epoch = plan.epoch(stop_step - 1)
        self._takes = [shards.takes(number) for number in range(len(plan.counts))]
        self._pool: ThreadPoolExecutor | None = None
        self._given_up = Event()
        self._recent: deque[list[Window]] = deque(maxlen=ahead + 1)
        self._held: list[Window] = []
        self._wanted: set[Window] = set()
        self._at_once = plan.windows_at_once(ahead + 2)  # and of the next one
        if any(self._takes):
            _check_budget(self._takes, self._at_once, plan.window_shards)
            self._pool = ThreadPoolExecutor(FETCHERS, thread_name_prefix="stoplab-fetch")

    def at(self, step: int) -> None:
        """Have fetched what the step reads and, once a window is done with, one more of those to
        come.
        """
        if self._pool is None:
            return
        now = self._plan.windows(step)
        self._recent.append(now)
        if self._recent[0][0] not in self._held[:1]:
            self._hold(self._recent[0][0])
        for window in (*now, *self._held):
            self._want(window)

    def close(self) -> None:
        """Fetch no more; what is half there is thrown away."""
        self._given_up.set()
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _hold(self, oldest: Window) -> None:
        """From now on those from ``oldest`` on."""
        self._held = [oldest]
        while len(self._held) < self._at_once:
            following = self._plan.following(*self._held[-1])
            if following[0] > self._last_epoch:
                break
            self._held.append(following)
        self._wanted.intersection_update(self._held)
        self._shards.close_others({shard for one in self._held for shard in self._reads(one)})

    def _want(self, window: Window) -> None:
        if window in self._wanted:
            return
        self._wanted.add(window)
        assert self._pool is not None
        for shard in self._reads(window):
            self._pool.submit(self._fetch, shard)

    def _reads(self, window: Window) -> list[int]:
        return self._plan.shards(*window, self._rank, self._world)

    def _fetch(self, shard: int) -> None:
        if self._given_up.is_set():
            return
        try:
            self._shards.fetch(shard, self._given_up)
        except (StoplabError, OSError) as error:
            # Told for good by who reads it, and he tries again first.
            if not self._given_up.is_set():
                log.warning("%s", error)


def _check_budget(takes: list[int], at_once: int, window_shards: int | None) -> None:
    budget = Settings().cache_bytes
    if budget is None:
        return
    most = sum(sorted(takes)[-(at_once * window_shards) :]) if window_shards else sum(takes)
    if most > budget:
        what = f"{at_once} windows of {window_shards} shards" if window_shards else "all shards"
        raise DataError(
            f"data.shuffle.window_shards: {what} take {most} bytes of the cache, and "
            f"STOPLAB_CACHE_BYTES allows {budget}; give smaller windows or a larger cache"
        )
