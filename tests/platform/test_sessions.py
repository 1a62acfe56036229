"""The watch over database sessions sees what it should."""

from __future__ import annotations

import socket
from pathlib import Path
from threading import Thread

import pytest

from stoplab_platform import settle
from stoplab_platform.jobs.database import Database
from stoplab_platform.runner.local import LocalRunner
from support_sessions import watch_sessions


def test_calls_inside_are_caught_and_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle.tracking, "finish_runs", lambda *words: 0)
    caught = watch_sessions(monkeypatch)
    database, runner = Database(f"sqlite:///{tmp_path}/store.db"), LocalRunner(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as server:
        calls = {
            "alive": runner.alive,
            "finish_runs": lambda: settle.tracking.finish_runs("uri", "job", "FINISHED"),
            "connect": lambda: connect(server.getsockname()),
        }
        for session in (database.reading, database.writing):
            for name, call in calls.items():
                call()
                with session():
                    elsewhere = Thread(target=call)  # another thread may
                    elsewhere.start()
                    elsewhere.join()
                    with pytest.raises(AssertionError, match=name):
                        call()
    assert caught == list(calls) * 2
    database.close()


def connect(address: tuple[str, int]) -> None:
    with socket.socket() as client:
        client.connect(address)
