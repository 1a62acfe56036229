"""Workers that come and go: a run's groups of workers, one after another, each of a fixed size.

A group takes the largest number of workers that divides the global batch and finds room. It ends
when a node is lost (the next one goes on from the last checkpoint), when a node is about to be
taken away, or when there has been room for more workers for a while: then it saves first, and no
step is lost. Why not Ray Train's own elastic groups: docs/decisions/0008.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray

from stoplab_platform.errors import Stopped
from stoplab_platform.failures import budget, cause_in
from stoplab_platform.files import read_json, write_json
from stoplab_platform.handoff import tell_news
from stoplab_platform.jobs.states import ReasonCode
from stoplab_platform.paths import RunFolder
from stoplab_trainers.beside import beside
from stoplab_trainers.notice import PREEMPTED, RESIZE, Draining, Notice, own_node_drains
from stoplab_trainers.room import Room, resources_of
from stoplab_trainers.summary import Summary
from stoplab_trainers.watchdog import Hung
from stoplab_trainers.workers import HOPELESS, Group, NoRoom

log = logging.getLogger("stoplab")

SETTLE_S = 3.0  # for more room to show itself before a group starts: lost workers leave theirs late
STEADY_S = 5.0  # for which there must be room for more, and no more come
LONGEST_S = 3600.0  # the same, after others were quicker to take such room
LOOK_S = 0.5  # seconds between two looks at whether a group should leave
KNOCK_S = 2.0  # to reach a node

WHY = {
    ReasonCode.PREEMPTED: "a node is taken away",
    ReasonCode.NODE_LOST: "node lost",
    ReasonCode.WORKER_ERROR: "a worker was lost",
    ReasonCode.HUNG: "no step came any more",
}
MORE = "room for more"
TAKEN = "others took the room"


def train(group: Group, terminated: Notice) -> Summary:
    """Train a run to its end on its workers, also where their number may change.

    ``terminated``: this process has to end. Raises `Stopped`, PREEMPTED where it or a node has to
    go and the run cannot go on by itself; `workers.TrainingFailed`; what Ray Train raises.
    """
    compute = group.spec.compute
    with Draining() as drained:

        def leaves() -> bool:
            return terminated() or drained()

        if compute.min_workers is not None:
            return _Elastic(group, leaves).train()
        with _asked(group.folder, lambda: PREEMPTED if leaves() else None):
            return group.train(compute.workers, compute.max_failures)


class _Elastic:
    """A run whose number of workers may change.

    Failures are counted by their reason, as the platform counts those of whole attempts
    (`failures.TABLE`): an error is raised where its kind came too often.
    """

    def __init__(self, group: Group, leaves: Callable[[], bool]) -> None:
        self._group, self._leaves = group, leaves
        self._counts = group.spec.compute.counts(group.spec.optim.batch_size)
        self._failures = Counter[ReasonCode]()
        self._why: str | None = None
        """Why the last group of workers ended."""
        self._steady_s = STEADY_S
        self._saved_step = 0
        """At the last stop; progress is written less often."""

    def train(self) -> Summary:
        count = 0
        while True:
            with Room(resources_of(self._group.spec.compute), self._counts) as room:
                before, count = count, self._first(room)
                if self._why == MORE:
                    self._learn(grown=count > before)
                self._tell(count)
                room.give()
                self._group.forget_places()
                wish = _Wish(room, self._group, self._leaves, self._steady_s)
                try:
                    with _asked(self._group.folder, wish):
                        return self._group.train(count, max_failures=0, waits=False)
                except NoRoom:
                    self._why = TAKEN
                except Stopped as stop:
                    self._saved_step, self._why = stop.step, self._after(stop)
                except Hung as hang:
                    self._why = self._counted(ReasonCode.HUNG, hang)
                except HOPELESS:
                    raise
                except Exception as error:
                    self._why = self._failed(error, count)

    def _first(self, room: Room) -> int:
        """The number of workers to begin with, waiting until there is room for the fewest."""
        told = False
        while not (count := room.look(SETTLE_S)):
            if not told:
                self._say(f"waits for room for {_workers(self._counts[0], self._counts[-1])}")
                self._why = self._why or "there is room now"
            told = True
            for file in (self._group.stop_file, self._group.folder.prune):
                if file and (wish := read_json(file)) is not None:
                    raise Stopped(str(wish["intent"]), self._step())
            if self._leaves():
                raise Stopped(PREEMPTED, self._step())
        return count

    def _learn(self, *, grown: bool) -> None:
        """Runs that want the same room would hand it to and fro: each then waits twice as long."""
        self._steady_s = STEADY_S if grown else min(2 * self._steady_s, LONGEST_S)
        self._why = MORE if grown else TAKEN

    def _tell(self, count: int) -> None:
        if self._why or count < self._counts[-1]:
            how, why = ("goes on", self._why) if self._why else ("begins", "no room for more")
            self._say(f"{how} with {_workers(count, self._counts[-1])}: {why}")

    def _say(self, text: str) -> None:
        """To the log, and as an event of the job."""
        log.info("%s", text)
        told = f"{text} (after step {self._step()})"
        tell_news(self._group.folder, self._group.identity.attempt, told)

    def _after(self, stop: Stopped) -> str:
        """Why the run goes on after a stop; raises the stop, if it is not the workers' alone."""
        if stop.intent == RESIZE:
            return MORE
        if stop.intent != PREEMPTED or self._leaves() or own_node_drains():
            raise stop
        return self._counted(ReasonCode.PREEMPTED, stop)

    def _failed(self, error: Exception, count: int) -> str:
        log.warning("%s", _last_line(error))
        return self._counted(_reason(error, self._group.nodes(count)), error)

    def _counted(self, reason: ReasonCode, error: Exception) -> str:
        self._failures[reason] += 1
        if self._failures[reason] > budget(reason, self._group.spec.compute.max_failures):
            raise error
        return WHY.get(reason, reason.value)

    def _step(self) -> int:
        seen = int((read_json(self._group.folder.progress) or {}).get("step", 0))
        return max(seen, self._saved_step)


class _Wish:
    """What workers are asked for, if anything: to leave, or to make way for more of them."""

    def __init__(
        self, room: Room, group: Group, leaves: Callable[[], bool], steady_s: float
    ) -> None:
        self._room, self._group, self._leaves = room, group, leaves
        self._steady_s = steady_s
        self._now = self._seen = room.count
        self._looks = 0  # that found the same room

    def __call__(self) -> str | None:
        """The intent of a stop; None: they may go on."""
        if self._leaves():
            return PREEMPTED
        if not self._group.has_begun(self._now):
            return None
        if (found := self._room.look(LOOK_S)) != self._seen:
            self._seen, self._looks = found, 0
        self._looks += 1
        steady = self._looks * LOOK_S >= self._steady_s
        return RESIZE if self._seen > self._now and steady else None


@contextmanager
def _asked(folder: RunFolder, wish: Callable[[], str | None]) -> Iterator[None]:
    """Ask the workers of the block to save and end, once there is a wish."""

    def watch(over: threading.Event) -> None:
        while not over.wait(LOOK_S):
            try:
                if (intent := wish()) is not None:
                    write_json(folder.leave, {"intent": intent})
                    return
            except Exception as error:  # the boundary to a cluster that may be going down
                log.debug("workers cannot be asked to leave: %s", error)

    with beside(watch, "stoplab-ask"):
        yield


def _reason(error: Exception, nodes: set[str]) -> ReasonCode:
    """Why a group failed: what Ray says, or what became of the nodes that it was on.

    All workers fail at once when one is gone; Ray takes seconds to miss its node.
    """
    said = cause_in(str(error)) or ReasonCode.WORKER_ERROR
    if said is not ReasonCode.WORKER_ERROR:
        return said
    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    theirs = [node for node in known if node["NodeID"] in nodes]
    alive = {node["NodeID"] for node in theirs if node["Alive"] and _answers(node)}
    return ReasonCode.WORKER_ERROR if nodes <= alive else ReasonCode.NODE_LOST


def _answers(node: dict[str, Any]) -> bool:
    place = (node["NodeManagerAddress"], node["NodeManagerPort"])
    try:
        socket.create_connection(place, KNOCK_S).close()
    except OSError:
        return False
    return True


def _workers(count: int, most: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''} (of {most})"


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
