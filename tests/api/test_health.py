from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from stoplab_api import auth, probes
from stoplab_api.answers import ReadyBody
from stoplab_api.probes import PARTS
from stoplab_platform.errors import StoreUnavailable
from stoplab_platform.pulse import FAILED_PASSES
from stoplab_platform.runner.base import Launch
from stoplab_platform.runner.local import LocalRunner
from support_api import Api, NoRunner, eventually, running_api

THREADS = 40  # that the framework gives to what waits


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with running_api(tmp_path_factory.mktemp("home")) as running:
        yield running


class TestHealth:
    def test_no_token_from_this_machine(self, api: Api) -> None:
        with api.http(None) as http:
            assert http.get("/livez").json() == {"alive": True}
            told = http.get("/readyz")
        assert told.status_code == 200
        assert ReadyBody.model_validate(told.json()).ready

    def test_from_elsewhere_a_token(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(auth, "_from_loopback", lambda request: False)
        with api.http(None) as http:
            assert http.get("/livez").status_code == 401
        with api.http("vera") as http:
            assert http.get("/livez").status_code == 200

    @pytest.mark.parametrize(
        ("host", "local"),
        [("127.0.0.1", True), ("::1", True), ("10.0.0.7", False), ("unix", False)],
    )
    def test_what_this_machine_is(self, host: str, local: bool) -> None:
        request: Any = type("Request", (), {"client": type("Client", (), {"host": host})})
        assert auth._from_loopback(request) is local

    def test_each_part_that_is_away_is_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gone = "http://127.0.0.1:9"
        with running_api(
            tmp_path, runner=NoRunner(), reconcile=True, MLFLOW_TRACKING_URI=gone,
            reconcile_period_s=0.01,
        ) as api:  # fmt: skip

            def broken(*_: Any) -> None:
                raise StoreUnavailable("the database does not answer: gone")

            monkeypatch.setattr(api.store, "ping", broken)
            monkeypatch.setattr(api.store, "unfinished", broken)
            pulse = api.lab.reconciler.pulse
            eventually(lambda: pulse.failures >= FAILED_PASSES)
            with api.http(None) as http:
                answer = http.get("/readyz")
                assert http.get("/livez").status_code == 200, "alive all the same"
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        problem = answer.json()
        assert problem["code"] == "not-ready"
        assert {name for name, check in problem["checks"].items() if not check["ok"]} == {
            "database",
            "runner",
            "mlflow",
            "reconciler",
        }
        assert "the database does not answer: gone" in problem["checks"]["reconciler"]["message"]

    def test_alive_while_every_thread_waits(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A database that hangs is no reason to kill the server."""
        go_on, waiting = threading.Event(), threading.Semaphore(0)

        def hangs(*_: Any) -> None:
            waiting.release()
            go_on.wait(30)

        with running_api(tmp_path) as api, ThreadPoolExecutor(THREADS + 5) as pool:
            monkeypatch.setattr(api.store, "principal", hangs)
            with api.http() as http:
                for _ in range(THREADS + 5):
                    pool.submit(http.get, "/v1/me")
                assert all(waiting.acquire(timeout=20) for _ in range(THREADS))
                try:
                    alive = httpx.get(f"{api.url}/livez", timeout=3, trust_env=False)
                    assert alive.status_code == 200
                finally:
                    go_on.set()

    def test_parts_are_asked_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        together = threading.Barrier(len(PARTS))

        def meets(_: Any) -> None:
            together.wait(20)

        monkeypatch.setattr(probes, "PARTS", dict.fromkeys(PARTS, meets))
        with running_api(tmp_path) as api, api.http(None) as http:
            assert http.get("/readyz").status_code == 200

    def test_the_reconciler_moves(self, tmp_path: Path) -> None:
        with running_api(tmp_path, reconcile=True, reconcile_period_s=0.05) as api:
            assert eventually(lambda: api.lab.reconciler.last_pass_age_s < 0.05)
            with api.http(None) as http:
                assert http.get("/readyz").json()["checks"]["reconciler"]["ok"]

    def test_with_the_cluster_away_submits_are_accepted(self, tmp_path: Path) -> None:
        with running_api(tmp_path, runner=NoRunner()) as api:
            job = api.submitted()
            with api.http() as http:
                assert http.get(f"/v1/jobs/{job['id']}").status_code == 200
                assert http.get("/v1/cluster").json()["runner"]["alive"] is False


QUICK = {"reconcile": True, "reconcile_period_s": 0.02}


def readiness(api: Api) -> tuple[int, str | None]:
    """The status of /readyz, and what it says of the reconciler; all else is well."""
    with api.http(None) as http:
        answer = http.get("/readyz")
        assert http.get("/livez").status_code == 200, "alive all the same"
    checks = answer.json()["checks"]
    assert all(check["ok"] for name, check in checks.items() if name != "reconciler")
    message: str | None = checks["reconciler"]["message"]
    return answer.status_code, message


def stuck(api: Api, words: str) -> str:
    """Waits for a 503 that says ``words`` of the reconciler."""

    def told() -> str | None:
        status, message = readiness(api)
        return message if status == 503 and message and words in message else None

    return str(eventually(told))


class Deaf(LocalRunner):
    """A cluster that takes connections and never answers."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.heard = threading.Event()

    def start(self, launch: Launch) -> None:
        self.heard.wait(30)


class TestStuckReconciler:
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_its_thread_has_ended(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with running_api(tmp_path, **QUICK) as api:
            eventually(lambda: readiness(api) == (200, None))

            def die() -> None:
                raise SystemExit

            monkeypatch.setattr(api.lab.reconciler, "pass_once", die)
            stuck(api, "its thread has ended")

    def test_a_pass_hangs_in_the_database(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with running_api(tmp_path, **QUICK) as api:
            over, unfinished = threading.Event(), api.store.unfinished

            def slow(known: Any) -> Any:
                over.wait(30)
                return unfinished(known)

            monkeypatch.setattr(api.store, "unfinished", slow)
            try:
                stuck(api, "a pass has been going on for")
            finally:
                over.set()
            eventually(lambda: readiness(api) == (200, None))

    def test_a_pass_hangs_at_one_job(self, tmp_path: Path) -> None:
        runner = Deaf(tmp_path / "runner")
        with running_api(tmp_path, runner=runner, **QUICK) as api:
            job_id = api.submitted()["id"]
            told = eventually(lambda: "now at" in (text := readiness(api)[1] or "") and text)
            assert job_id in told
            runner.heard.set()

    def test_passes_fail_again_and_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with running_api(tmp_path, **QUICK) as api:
            with monkeypatch.context() as broken:

                def fail(*_: Any) -> None:
                    raise RuntimeError("no rows today")

                broken.setattr(api.store, "unfinished", fail)
                told = stuck(api, "passes failed: no rows today")
                assert int(told.split()[2]) >= 3
            eventually(lambda: readiness(api) == (200, None))

    def test_one_failed_pass_is_no_alarm(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with running_api(tmp_path, **QUICK) as api:
            unfinished, calls = api.store.unfinished, []

            def once(known: Any) -> Any:
                calls.append(1)
                if len(calls) == 1:
                    raise StoreUnavailable("gone for a moment")
                return unfinished(known)

            monkeypatch.setattr(api.store, "unfinished", once)
            eventually(lambda: len(calls) > 1)
            assert api.lab.reconciler.pulse.failures == 1
            eventually(lambda: readiness(api) == (200, None))


def test_mlflow_answers(tmp_path: Path, api: Api) -> None:
    """Any server with /health stands for MLflow's; ours has none, and that is not healthy."""
    with running_api(tmp_path, MLFLOW_TRACKING_URI=api.url) as other, other.http(None) as http:
        told = http.get("/readyz")
    assert told.status_code == 503
    assert "404" in told.json()["checks"]["mlflow"]["message"]
    assert httpx.URL(api.url).host in told.json()["checks"]["mlflow"]["message"]
