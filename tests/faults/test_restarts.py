"""The API is killed and started again with jobs in every state; so is Ray's head.

Elsewhere: PostgreSQL away for half a minute (`api/test_database_away.py`), a sweep whose Ray head
is killed (`sweeps/test_killed_head.py`), MLflow away (`test_mlflow_away.py`).
"""

from __future__ import annotations

import re
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from stoplab_platform import settle
from stoplab_platform.jobs.states import ReasonCode, State
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.paths import Home
from stoplab_platform.runner.ray_jobs import RayJobsRunner
from stoplab_platform.settings import Settings
from support_api import SPEC
from support_jobs import kill_supervisors, running_lab, trainer
from support_ledger import kill_ledger
from support_mlflow import free_port
from support_ray import ray_head
from support_replica import SECRET, Replica, make_token, running
from support_store import open_store, wait_for

pytestmark = pytest.mark.slow

KILL = "kill -9 of the API"
STEPS_PER_S = 50
LASTS = {"running": 10, "ending": 6, "paused": 8, "cancelled": 60, "starting": 1, "queued": 1}
"""Seconds that each job's run takes at least, beside the downtime for `running`."""
AT_THE_KILL = {
    "running": State.RUNNING,
    "ending": State.RUNNING,
    "paused": State.STOPPING,
    "cancelled": State.STOPPING,
    "starting": State.STARTING,
    "queued": State.QUEUED,
}


class People:
    """Who talks to the API."""

    def __init__(self, url: str, store: JobStore) -> None:
        headers = {"Authorization": f"Bearer {SECRET}"}
        self._http = httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=30)
        self._store = store
        self.ids: dict[str, str] = {}

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def submit(self, *names: str) -> None:
        """Jobs of these names."""
        for name in names:
            answer = self._http.post("/v1/jobs", json={"spec": {**SPEC, "name": name}})
            assert answer.status_code == 202, answer.text
            self.ids[name] = answer.json()["id"]

    def ask(self, name: str, verb: str) -> None:
        """`cancel`, `pause` or `resume`."""
        answer = self._http.post(f"/v1/jobs/{self.ids[name]}/{verb}")
        assert answer.is_success, answer.text

    def states(self) -> dict[str, State]:
        """Of every job, from the store."""
        return {name: self._store.get(job_id).state for name, job_id in self.ids.items()}

    def wait(self, name: str, state: State, timeout_s: float = 60) -> None:
        """Until a job is there."""
        wait_for(lambda: self.states()[name] is state, f"{name} to be {state}", timeout_s)

    def history(self, name: str) -> list[str]:
        """The states that a job went through."""
        return [str(event.to_state) for event in self._store.history(self.ids[name])]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("away_s", [0, 20, 60])
def test_jobs_in_every_state(home: Path, away_s: int) -> None:
    commands = {
        name: trainer(STEPS_PER_S * (s + away_s * (name == "running")), more=2 * STEPS_PER_S)
        for name, s in LASTS.items()
    } | {"*": trainer(1)}
    env = {"STOPLAB_CAPACITY_CPUS": "5", "STOPLAB_RECONCILE_PERIOD_S": "0.5"}
    replica = Replica("one", free_port(), home, commands, env)
    settings = Settings(home=home)
    with open_store(settings.database) as store, kill_ledger(f"API, {away_s} s", KILL) as ledger:
        make_token(store)
        try:
            with running(replica), closing(People(replica.url, store)) as people:
                into_every_state(people)
                replica.kill()
                ledger.did(KILL)
                ledger.note(f"jobs were {', '.join(map(str, people.states().values()))}")
                assert people.states() == AT_THE_KILL
                began = time.monotonic()
                wait_for(lambda: time.monotonic() - began >= away_s, "downtime", away_s + 5)
                replica.start()
                replica.await_ready()
                to_their_ends(people, away_s)
            check(people, settings.folders)
        finally:
            kill_supervisors(home)


def into_every_state(people: People) -> None:
    """One job in each state in which a restart may find it."""
    people.submit("running", "ending", "paused", "cancelled")
    for name in ("running", "ending", "paused", "cancelled"):
        people.wait(name, State.RUNNING)
    people.submit("starting", "queued")  # one CPU is left
    people.ask("paused", "pause")
    people.ask("cancelled", "cancel")
    people.wait("starting", State.STARTING)


def to_their_ends(people: People, away_s: float) -> None:
    """Every job comes to its end; the paused one is resumed."""
    people.wait("cancelled", State.CANCELLED)
    people.wait("paused", State.PAUSED)
    people.ask("paused", "resume")
    for name in ("ending", "starting", "queued", "paused", "running"):
        people.wait(name, State.SUCCEEDED, 90 + away_s)


def check(people: People, home: Home) -> None:
    """Nothing was recovered, started twice or done twice."""
    for name, job_id in people.ids.items():
        log = home.job(job_id).driver_log.read_text()
        attempts = ["1", "2"] if name == "paused" else ["1"]
        assert re.findall(r"attempt (\d+) from", log) == attempts, log
        assert "two attempts at once" not in log
        assert "RECOVERING" not in people.history(name)
        steps = int((home.job(job_id).root / "steps").read_text())
        assert (steps >= STEPS_PER_S * LASTS[name]) is (name != "cancelled")
    assert people.history("paused").count("STARTING") == 2


HEAD = "kill -9 of a Ray head and all below it"


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_rays_head_with_jobs_running(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle.tracking, "finish_runs", lambda *_: 0)
    place = {"dashboard": free_port(), "token": tmp_path / "token"}
    runner = RayJobsRunner(f"http://127.0.0.1:{place['dashboard']}", tmp_path / "token")
    with kill_ledger("Ray's head", HEAD) as ledger:
        with running_lab(home, trainer(600), runner=runner, cpus=2) as lab:
            with ray_head(**place) as head:
                jobs = [lab.submit(f"job {number}") for number in range(3)]
                for job in jobs[:2]:
                    lab.wait(job, State.RUNNING, 90)
                wait_for(lambda: all(lab.steps(job) > 5 for job in jobs[:2]), "some steps")
                killed = head.kill()
                ledger.did(HEAD)
                ledger.note(f"{len(killed)} processes: {', '.join(sorted(set(killed)))}")
                assert {"raylet", "gcs_server"} <= set(killed)
            with ray_head(**place):
                for job in jobs:
                    lab.wait(job, State.SUCCEEDED, 200)
            for job in jobs[:2]:
                assert lab.states(job)[2:] == ["RUNNING", "RECOVERING", "RUNNING", "SUCCEEDED"]
                reason = lab.store.history(job.id)[3].reason_code
                assert reason in (ReasonCode.NODE_LOST, ReasonCode.HEARTBEAT_LOST)
                attempts = re.findall(r"attempt (\d+) from (\d+)", lab.log(job))
                assert [number for number, _ in attempts] == ["1", "2"]
                assert int(attempts[1][1]) > 5, "it began anew"
            assert lab.job(jobs[2]).attempt == 1
            for job in jobs:
                assert lab.steps(job) == 600
                assert "two attempts at once" not in lab.log(job)
    runner.close()
