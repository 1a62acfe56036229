"""Telling how jobs ended, by real API processes that are killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stoplab_platform.jobs.states import State
from stoplab_platform.settings import Settings
from support_api import eventually
from support_store import new_job, open_store
from support_webhooks import Heard, listening

pytestmark = pytest.mark.slow


@contextmanager
def api_process(log: Path) -> Iterator[None]:
    """An API, killed without a word at the end of the block."""
    command = [sys.executable, "-m", "stoplab_api.app", "--port", "0"]
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        yield
        assert process.poll() is None, log.read_text()
    finally:
        process.kill()
        process.wait()


def test_what_a_killed_api_had_to_tell_the_next_one_tells(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, log = Heard(answers=[503]), tmp_path / "api.log"
    with open_store(Settings().database) as store:
        job = store.submit(new_job()).job
        job = store.move(job, State.CANCELLED, actor="test")
        with listening(heard) as port:
            monkeypatch.setenv("STOPLAB_WEBHOOK_URL", f"http://127.0.0.1:{port}/word-of-mouth")
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            with api_process(log):
                eventually(lambda: heard.requests, 90)
        with api_process(log), listening(heard, port):  # the dead one's lease has to run out
            eventually(lambda: heard.taken, 120)
        eventually(lambda: "webhook.sent" in [event.verb for event in store.events(job.id)])
    assert [one["data"]["id"] for one in heard.taken] == [job.id]
    assert len({headers["webhook-id"] for headers, _ in heard.requests}) == 1
    assert "word-of-mouth" not in log.read_text(), "the address may be a secret"
