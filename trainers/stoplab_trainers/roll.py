"""Who takes part in a run: the group of workers that holds its folder, and a heartbeat a rank.

Ray Train starts a group anew within one attempt, so the number of the attempt does not tell the
newest group from one that was cut off and lives on: each start takes the folder under a number of
its own. Heartbeats are counters, judged by the observer's clock.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

from stoplab_platform.errors import Fenced
from stoplab_platform.fence import is_fenced
from stoplab_platform.files import read_json, write_json
from stoplab_platform.paths import RunFolder
from stoplab_platform.settings import Settings
from stoplab_trainers.loop import World

SILENT_S = 10.0  # without a beat; file systems over a network show old ones for a few seconds
TOLD = 8  # ranks that a message names
UNMET = 0  # the number of a group whose ranks have not heard of each other; others count from 1


def fence(settings: Settings) -> Callable[[], bool]:
    """Whether a newer attempt of the job has begun; never, where no supervisor started this one.

    The supervisor looks as well, but these processes may outlive it on another machine.
    """
    if settings.job_id is None or settings.attempt is None:
        return lambda: False
    return partial(is_fenced, settings.folders.job(settings.job_id), settings.attempt)


class Roll:
    """One rank's view of its group."""

    def __init__(self, folder: RunFolder, world: World) -> None:
        self._folder, self._world = folder, world
        self._own: dict[str, Any] = {"group": UNMET}
        self._count = 0
        self._first_count, self._first_heard_at = -1, float("-inf")

    def take(self) -> None:
        """Take the folder for this group; all ranks call. Fenced where a newer attempt has it."""
        own: dict[str, Any] | None = None
        if self._world.rank == 0 and not fence(Settings())():
            newest = (read_json(self._folder.group) or {"group": 0})["group"]
            own = {"group": newest + 1, "token": uuid4().hex}
            write_json(self._folder.group, own)
            self._folder.hung.unlink(missing_ok=True)
        own = self._world.from_first(own)
        if own is None:
            raise Fenced(f"a newer attempt owns the job's folder, {self._folder.root}")
        self._own = own

    def lost(self) -> bool:
        """Whether a newer group has the folder; an older one is only an old view of the file."""
        holds = read_json(self._folder.group)
        return (
            holds is not None
            and holds["group"] >= self._own["group"]
            and holds["token"] != self._own["token"]
        )

    def beat(self, step: int, training: bool) -> None:
        """Leave a sign of life: steps done, and whether the next one is on its way."""
        self._count += 1
        write_json(self._folder.beat(self._world.rank), {
            "group": self._own["group"], "count": self._count, "step": step, "training": training,
            "host": socket.gethostname(), "pid": os.getpid(),
        })  # fmt: skip

    def first_is_busy(self) -> bool:
        """Whether rank 0 lives, and does what the others wait for without end (evaluations)."""
        seen = self._beat_of(0)
        if seen is None or seen["training"]:
            return False
        if seen["count"] != self._first_count:
            self._first_count, self._first_heard_at = seen["count"], time.monotonic()
        return time.monotonic() - self._first_heard_at < SILENT_S

    def standing(self) -> str:
        """Where each rank is, for people: silent ones first, then those that are behind.

        Times of files are compared with that of this rank's own: all are by the server's clock.
        """
        if self._own["group"] == UNMET:
            return "nothing has come through from the other workers yet; look at their network"
        now_s = self._written_s(self._world.rank)
        ranks = []
        for rank in range(self._world.size):
            seen = self._beat_of(rank)
            if seen is None:
                ranks.append((-1, 0, f"rank {rank}: never heard of"))
                continue
            quiet_s = max(0.0, now_s - self._written_s(rank))
            where = f"rank {rank} after step {seen['step']}"
            if quiet_s > SILENT_S / 2:
                where += f", silent for {quiet_s:.0f} s ({seen['host']}, process {seen['pid']})"
            ranks.append((-1 if quiet_s > SILENT_S / 2 else 0, seen["step"], where))
        told = [where for _, _, where in sorted(ranks)]
        more = len(told) - TOLD
        return "; ".join(told[:TOLD]) + (f"; and {more} more" if more > 0 else "")

    def leave_hung(self, message: str) -> None:
        """Tell the driver why this group ends."""
        write_json(self._folder.hung, {"group": self._own["group"], "message": message})

    def _beat_of(self, rank: int) -> dict[str, Any] | None:
        """Of this group's rank."""
        seen: dict[str, Any] | None = read_json(self._folder.beat(rank))
        return seen if seen is not None and seen["group"] == self._own["group"] else None

    def _written_s(self, rank: int) -> float:
        return self._folder.beat(rank).stat().st_mtime


def hung(folder: RunFolder) -> str | None:
    """Why the newest group of a run ended, if it hung."""
    told, holds = read_json(folder.hung), read_json(folder.group)
    if told is None or holds is None or told["group"] not in (UNMET, holds["group"]):
        return None
    return str(told["message"])
