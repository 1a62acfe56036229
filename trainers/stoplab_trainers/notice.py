"""Hearing in time that the cluster takes a machine back: SIGTERM, or a node that Ray drains.

Asked at every step and never waited for. `ray.train.get_preemption_info` tells of drained nodes as
well, but every rank must call it equally often, and one whose node is gone strands the others.
"""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any, Protocol, runtime_checkable

log = logging.getLogger("stoplab")

PREEMPTED = "PREEMPTED"
"""The intent of a stop that no person asked for."""
RESIZE = "RESIZE"
"""The intent of a stop after which another number of workers goes on."""
LOOK_S = 1.0  # seconds between two looks at what Ray drains


@runtime_checkable  # the shape checks of the tests look at instances
class Notice(Protocol):
    """Tells whether this process is about to lose its machine; listens while it is a context."""

    def __call__(self) -> bool:
        """Whether notice was given."""

    def __enter__(self) -> Notice:
        """Begin to listen."""

    def __exit__(self, *_: object) -> None:
        """Listen no longer."""


class _Never:
    """Notice that never comes."""

    def __call__(self) -> bool:
        return False

    def __enter__(self) -> _Never:
        return self

    def __exit__(self, *_: object) -> None:
        pass


NEVER = _Never()


class Terminated:
    """SIGTERM, which Kubernetes, SLURM and Ray Jobs send before they kill.

    Python hears signals in its first thread only: in any other, nothing is ever heard.
    """

    def __init__(self) -> None:
        self._heard, self._listens = False, False
        self._before: Any = None

    def __call__(self) -> bool:
        """Whether the signal came."""
        return self._heard

    def __enter__(self) -> Terminated:
        self._listens = threading.current_thread() is threading.main_thread()
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        self._heard = True


class Draining:
    """Ray drains the node of this process (`ray drain-node`, autoscalers before they end a node).

    A thread asks Ray, which may be slow to answer or away; the steps do not wait for it.
    """

    def __init__(self) -> None:
        self._over, self._heard = threading.Event(), False
        self._thread = threading.Thread(target=self._listen, name="stoplab-notice", daemon=True)

    def __call__(self) -> bool:
        """Whether the node drains."""
        return self._heard

    def __enter__(self) -> Draining:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(LOOK_S)

    def _listen(self) -> None:
        while not self._heard and not self._over.wait(LOOK_S):
            try:
                self._heard = own_node_drains()
            except Exception as error:  # the boundary to a cluster that may be going down
                log.debug("Ray does not say which nodes it drains: %s", error)


def own_node_drains() -> bool:
    """Whether Ray drains the node of this process; False where that has not joined Ray.

    No public call of Ray 2.60 tells which nodes drain; this is where Ray Train's own watcher looks.
    """
    import ray
    from ray._private.state import state

    if not ray.is_initialized():
        return False
    return ray.get_runtime_context().get_node_id() in state.get_draining_nodes()
