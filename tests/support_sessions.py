"""Proves that nothing goes over the network while a database session is open."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import pytest
from sqlalchemy.orm import Session

from stoplab_platform import settle
from stoplab_platform.jobs.database import Database
from stoplab_platform.runner.local import LocalRunner
from stoplab_platform.runner.ray_jobs import RayJobsRunner

NETWORK = {
    LocalRunner: ("start", "observe", "stop", "alive"),
    RayJobsRunner: ("start", "observe", "stop", "alive"),
    settle.tracking: ("drain", "finish_runs"),
    socket.socket: ("connect", "sendall"),
}
"""What counts: the runners (a local one stands for a cluster's), the tracker, and any socket."""


class SessionWatch(threading.local):
    """How many sessions this thread has open."""

    open = 0

    @contextmanager
    def inside(self) -> Iterator[None]:
        """While one is open."""
        self.open += 1
        try:
            yield
        finally:
            self.open -= 1


def watch_sessions(patch: pytest.MonkeyPatch) -> list[str]:
    """From now on: the calls that were made in a session. They are refused, too."""
    watch, caught = SessionWatch(), list[str]()
    for name in ("reading", "writing"):
        patch.setattr(Database, name, _session(getattr(Database, name), watch))
    for owner, names in NETWORK.items():
        for name in names:
            patch.setattr(owner, name, _outside(getattr(owner, name), name, watch, caught))
    return caught


def _session(opened: Callable[..., Any], watch: SessionWatch) -> Callable[..., Any]:
    @contextmanager
    def watched(self: Database) -> Iterator[Session]:
        with opened(self) as session, watch.inside():
            yield session

    return watched


def _outside(
    call: Callable[..., Any], name: str, watch: SessionWatch, caught: list[str]
) -> Callable[..., Any]:
    @wraps(call)
    def checked(*args: Any, **kwargs: Any) -> Any:
        if watch.open:
            caught.append(name)
            raise AssertionError(f"{name} was called while a database session was open")
        return call(*args, **kwargs)

    return checked
