"""A real job that needs a secret: its value is nowhere but in its own file."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from stoplab_platform.jobs.states import TERMINAL, State
from stoplab_platform.secret_store import Secrets
from stoplab_trainers.data.embedded import embedded_shards
from support_api import Api, eventually, running_api
from support_jobs import running_lab, script
from support_runs import TINY
from support_store import ADMIN, run_spec

VALUE = "hunter2-hunter2-hunter2"
SHOWN = ("", "/logs", "/events", "/metrics?name=train/loss")


class Guarded(SimpleHTTPRequestHandler):
    """A folder for those who know the word."""

    let_in = 0

    def do_HEAD(self) -> None:
        if self._knows():
            super().do_HEAD()

    def do_GET(self) -> None:
        if self._knows():
            super().do_GET()

    def log_message(self, format: str, *words: Any) -> None:
        """Nothing."""

    def _knows(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {VALUE}":
            type(self).let_in += 1
            return True
        self.send_error(403)
        return False


@contextmanager
def guarded(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Guarded, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def told_by_processes() -> list[str]:
    """Processes whose command or environment holds the value."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if VALUE in " ".join((*process.cmdline(), *process.environ().values())):
                found.append(process.name())
    return found


def ended(api: Api, job_id: str) -> bool:
    assert told_by_processes() == []
    return api.store.get(job_id).state in TERMINAL


@pytest.mark.slow
def test_a_job_that_used_it(home: Path, mlflow_uri: str, shared_cache: Path) -> None:
    folder = embedded_shards("digits", shared_cache)[0].parent
    with guarded(folder) as url, running_api(home, reconcile=True, reconcile_period_s=0.2) as api:
        Secrets(api.lab.settings).set(
            "shards",
            json.dumps({"client_kwargs": {"headers": {"Authorization": f"Bearer {VALUE}"}}}),
        )
        data = {
            **TINY["data"],
            "train": f"{url}/train-{{000000..000003}}.tar",
            "storage": "secret://shards",
            "eval": {"train": f"{url}/train-000000.tar", "test": f"{url}/test-000000.tar"},
        }
        job_id = api.submitted({**TINY, "data": data})["id"]
        eventually(lambda: ended(api, job_id), 120)
        job = api.store.get(job_id)
        assert job.state is State.SUCCEEDED, (
            job.message,
            api.folder(job_id).driver_log.read_text(),
        )
        assert Guarded.let_in >= 6
        eventually(lambda: api.store.get(job_id).settled, 60)
        with api.http() as http:
            told = [http.get(f"/v1/jobs/{job_id}{page}").text for page in SHOWN]
            params = sqlite3.connect(mlflow_uri.removeprefix("sqlite:///"))
            rows = params.execute("SELECT value FROM params WHERE key = 'data.storage'").fetchall()
            params.close()
    assert rows == [("secret://shards",)]
    assert "secret://shards" in told[0]
    assert VALUE not in "".join(told)
    kept = home / "secrets" / "default" / "shards"
    files = [path for root in (home, Path(mlflow_uri[10:]).parent) for path in root.rglob("*")]
    for path in files:
        if path.is_file() and path != kept:
            assert VALUE.encode() not in path.read_bytes(), path


def test_a_run_that_prints_it(home: Path, mlflow_uri: str) -> None:
    """Its output is its own, byte for byte; what the platform says of it is not."""
    code = (
        "from stoplab_platform.secret_store import Secrets\n"
        "from stoplab_platform.settings import Settings\n"
        "raise SystemExit('refused: ' + Secrets(Settings()).value('word'))\n"
    )
    with running_lab(home, script(code), tracking_uri=mlflow_uri) as lab:
        Secrets(lab.settings).set("word", VALUE)
        spec = run_spec(data={"train": "digits", "storage": "secret://word"})
        job = lab.jobs.submit(ADMIN, spec).job
        job = lab.wait(job, State.FAILED)
        assert job.message == "refused: secret://word"
        assert VALUE in lab.log(job)
        assert VALUE not in lab.folder(job).result.read_text()
        assert [event.message for event in lab.store.events(job.id) if VALUE in str(event)] == []
