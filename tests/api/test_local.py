"""The local lab: its processes, its files, and real labs (marked `ray`)."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from stoplab_api import local
from stoplab_api.lab_parts import PARTS, Part, Place
from stoplab_api.lab_processes import LabError, Ports, Started, end, start
from stoplab_api.lab_secrets import ensure_token
from stoplab_platform.jobs.models import Role
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.paths import Home
from stoplab_platform.secret_files import ensure_secret
from stoplab_platform.settings import Settings
from support_lab import Stoplab, until

SERVE = "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port={port}, bind='127.0.0.1')"
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
if len(sys.argv) > 1:  # a child in a session of its own, as Ray's jobs are
    subprocess.run([sys.executable, __file__], start_new_session=True)
time.sleep(600)
"""
ANY = {"api": 0, "mlflow": 0, "ray": 0}


class TestPorts:
    def test_a_taken_one(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server, Ports() as ports:
            port = server.getsockname()[1]
            with pytest.raises(LabError, match=f"port {port} is taken"):
                ports.take(port)
            assert ports.take(None, preferred=port) != port
        with Ports() as ports:
            assert ports.take(port) == port

    def test_any(self) -> None:
        with Ports() as ports:
            preferred = ports.take(0)
        with Ports() as ports:
            assert ports.take(0, preferred) != preferred
            assert len({ports.take(0) for _ in range(20)}) == 20

    def test_kept_from_another_lab_that_starts(self) -> None:
        with Ports() as mine, Ports() as others:
            port = mine.take(0)
            assert others.take(None, preferred=port) != port
            with pytest.raises(LabError, match="is taken"):
                others.take(port)
        with Ports() as others:
            assert others.take(None, preferred=port) == port


class TestProcesses:
    def test_a_number_may_be_somebody_elses(self) -> None:
        me = psutil.Process()
        assert Started(me.pid, me.create_time()).process() == me
        assert Started(me.pid, me.create_time() - 60).process() is None
        assert Started(2**22, 0.0).process() is None

    def test_all_end_even_stubborn_orphans(self, tmp_path: Path) -> None:
        """The parent is killed, its child ignores SIGTERM: only the mark finds it."""
        script = tmp_path / "stubborn.py"
        script.write_text(STUBBORN)
        log = tmp_path / "log"
        command = [sys.executable, str(script), "with-child"]
        parent = start(command, os.environ, tmp_path, log, "part@here")
        until(lambda: log.exists() and log.read_text().count("ready") == 2)
        (child,) = psutil.Process(parent.pid).children()
        os.kill(parent.pid, signal.SIGKILL)
        until(lambda: parent.process() is None)
        other = start([sys.executable, str(script)], os.environ, tmp_path, log, "part@elsewhere")
        try:
            end([parent], ["part@here"], grace_s=0.2)
            assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
            assert other.process() is not None
        finally:
            end([other], ["part@elsewhere"], grace_s=0.2)
        assert other.process() is None


class TestSecrets:
    def test_made_once_for_the_owner_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "tokens" / "ray"
        secret = ensure_secret(path)
        assert len(secret) == 64
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert ensure_secret(path) == secret

    def test_the_local_token_opens_the_store(self, home: Path) -> None:
        settings = Settings()
        ensure_token(settings)
        ensure_token(settings)
        store = JobStore(settings.database)
        try:
            principal = store.principal(settings.folders.token_file.read_text())
            assert principal is not None
            assert (principal.project, principal.role) == ("default", Role.ADMIN)
            (token,) = store.tokens("default")
            store.revoke_token(token.id)
            ensure_token(settings)
            assert store.principal(settings.folders.token_file.read_text()) is not None
        finally:
            store.close()


def test_rays_sockets_have_short_names(tmp_path: Path) -> None:
    deep = Place(Home(tmp_path / ("x" * 100)), {})
    session = "session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
    assert len(str(deep.ray_folder / session).encode()) < 107
    assert deep.ray_folder != Place(Home(tmp_path), {}).ray_folder


class TestLife:
    """Three small web servers stand for the parts: what is tested is who starts and ends when."""

    @pytest.fixture(autouse=True)
    def _small_parts(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        for name in PARTS:
            monkeypatch.setitem(PARTS, name, _server(name))
        yield
        lab = local.find(Settings().folders)
        if lab is not None:
            local.down(lab, print, pause=False)

    def test_adopts_what_lives_and_restarts_what_died(self, capsys: Any) -> None:
        lab, started = local.up(Settings(), ANY, print)
        assert started == ["ray", "mlflow", "api"]
        assert local.up(Settings(), ANY, print)[1] == []
        os.kill(lab.pids["api"].pid, signal.SIGKILL)
        until(lambda: local.find(lab.home).dead() == ["api"])  # type: ignore[union-attr]
        again, started = local.up(Settings(), ANY, print)
        assert started == ["api"]
        assert again.addresses() == lab.addresses()
        assert again.pids["ray"] == lab.pids["ray"]
        assert again.pids["api"] != lab.pids["api"]

    def test_a_living_lab_keeps_its_ports(self) -> None:
        lab, _ = local.up(Settings(), ANY, print)
        with pytest.raises(LabError, match="has its api on port"):
            local.up(Settings(), {"api": 1}, print)
        assert not lab.dead()

    def test_down_leaves_nothing(self) -> None:
        lab, _ = local.up(Settings(), ANY, print)
        assert lab.place.ray_folder.is_dir()
        local.down(lab, print, pause=False)
        assert lab.dead() == list(PARTS)
        assert not lab.place.ray_folder.exists()
        assert local.find(lab.home) is None

    def test_a_part_that_dies_takes_the_others_along(
        self, monkeypatch: pytest.MonkeyPatch, home: Path
    ) -> None:
        cry = [sys.executable, "-c", "raise SystemExit('no database here')"]
        monkeypatch.setitem(PARTS, "api", Part(lambda _: cry, lambda _: {}, lambda _: False))
        with pytest.raises(LabError, match=r"(?s)api died while starting.*no database here"):
            local.up(Settings(), ANY, print)
        assert Stoplab(home, home).left() == []
        assert not (home / "lab.json").exists()

    def test_a_part_that_never_answers(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
        monkeypatch.setitem(PARTS, "api", Part(lambda _: sleep, lambda _: {}, lambda _: False))
        with pytest.raises(LabError, match="api does not answer after 1 s"):
            local.up(Settings(), ANY, print, deadline_s=1.0)
        assert Stoplab(home, home).left() == []

    def test_two_at_a_time(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
        monkeypatch.setattr(local, "LOCK_S", 0.1)
        with local._locked(Home(home)), pytest.raises(LabError, match="another `stoplab up`"):
            local.up(Settings(), ANY, print)


def _server(name: str) -> Part:
    def command(place: Place) -> list[str]:
        return [sys.executable, "-c", SERVE.format(port=place.ports[name])]

    def is_ready(place: Place) -> bool:
        try:
            return httpx.get(place.url(name), trust_env=False).is_success
        except httpx.TransportError:
            return False

    return Part(command, lambda _: {}, is_ready)


@pytest.mark.ray
@pytest.mark.timeout(600)
class TestRealLabs:
    @pytest.fixture
    def lab(self, tmp_path: Path) -> Iterator[Stoplab]:
        home = tmp_path / "a lab"
        home.mkdir()
        lab = Stoplab(home, tmp_path)
        yield lab
        lab.clean()

    def test_up_status_env_restart_down(self, lab: Stoplab, tmp_path: Path) -> None:
        up = lab.json("up", "--detach", "--port", 0, "--mlflow-port", 0, "--ray-port", 0)
        assert up.keys() == {"api", "mlflow", "ray", "token_file", "home"}
        assert up["home"] == str(lab.home)
        token = Path(up["token_file"])
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        self._answers_to_those_who_may(up, token.read_text())
        assert all(part["ready"] for part in lab.json("status")["parts"].values())
        self._a_bare_ray_job_lands_here(lab, up)
        self._a_killed_api_comes_back(lab, up)
        before = lab.lab()
        assert lab.json("down") == {"home": str(lab.home), "stopped": True}
        assert lab.left() == []
        pids = [process["pid"] for process in before["pids"].values()]
        until(lambda: not any(map(psutil.pid_exists, pids)), 30)  # init may be slow
        assert not (lab.home / "lab.json").exists()
        assert lab.json("status", code=1)["running"] is False

    def _answers_to_those_who_may(self, up: dict[str, str], token: str) -> None:
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(trust_env=False, timeout=20) as http:
            assert http.get(up["api"] + "/v1/me", headers=headers).json()["role"] == "admin"
            assert http.get(up["api"] + "/v1/me").status_code == 401
            assert http.get(up["ray"] + "/api/jobs/").status_code == 401
            assert http.get(up["mlflow"] + "/health").is_success
            evil = http.get(up["mlflow"] + "/", headers={"Host": "evil.example"})
            assert evil.status_code == 403
            until(lambda: http.get(up["api"] + "/readyz").is_success, 30)

    def _a_bare_ray_job_lands_here(self, lab: Stoplab, up: dict[str, str]) -> None:
        lines = lab.run("env").splitlines()
        env = dict(shlex.split(line)[1].split("=", 1) for line in lines)
        assert env["RAY_ADDRESS"] == up["ray"]
        say = "import os; print(os.environ['STOPLAB_HOME'], os.environ['MLFLOW_TRACKING_URI'])"
        job = subprocess.run(
            [Path(sys.executable).with_name("ray"), "job", "submit", "--",
             "python", "-c", say],
            env={**os.environ, **env}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert job.returncode == 0, job.stdout + job.stderr
        assert f"{lab.home} {up['mlflow']}" in job.stdout

    def _a_killed_api_comes_back(self, lab: Stoplab, up: dict[str, str]) -> None:
        old = lab.lab()["pids"]
        os.kill(old["api"]["pid"], signal.SIGKILL)
        until(lambda: not lab.json("status", code=1)["parts"]["api"]["alive"])
        assert lab.json("up", "--detach") == up
        new = lab.lab()["pids"]
        assert new["api"] != old["api"]
        assert (new["ray"], new["mlflow"]) == (old["ray"], old["mlflow"])

    @pytest.mark.slow
    def test_two_side_by_side(self, lab: Stoplab, tmp_path: Path) -> None:
        """At once; one of them in the foreground, ended by SIGTERM."""
        other = Stoplab(tmp_path / "other", tmp_path)
        with ExitStack() as stack:
            stack.callback(other.clean)
            foreground = stack.enter_context(other.start("up", "--port", 0))
            stack.callback(foreground.kill)
            detached = lab.json("up", "--detach", "--port", 0)
            assert foreground.stdout is not None
            assert foreground.stdout.readline(), "it says where it is once all parts answer"
            assert httpx.get(_api(other), trust_env=False).is_success
            ports = [*lab.lab()["ports"].values(), *other.lab()["ports"].values()]
            assert len(set(ports)) == len(ports)
            foreground.send_signal(signal.SIGTERM)
            _, err = foreground.communicate(timeout=120)
            assert foreground.returncode == 0, err
        assert other.left() == []
        assert httpx.get(detached["api"] + "/livez", trust_env=False).is_success
        began = time.monotonic()
        lab.run("down")
        assert time.monotonic() - began < 60
        assert lab.left() == []


def _api(lab: Stoplab) -> str:
    return str(until(lambda: lab.lab().get("api"), 60)) + "/livez"
