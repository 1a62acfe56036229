from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from stoplab_api import auth
from stoplab_platform.admission import Resources
from stoplab_platform.errors import StoreUnavailable
from stoplab_platform.files import write_json
from stoplab_platform.jobs.states import State
from support_api import COMPARE, SPEC, Api, NoRunner, eventually, running_api

Labels = tuple[tuple[str, str], ...]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    with running_api(tmp_path) as running:
        yield running


def scraped(api: Api) -> dict[str, dict[Labels, float]]:
    """Samples by name and labels, parsed as Prometheus would."""
    with api.http(None) as http:
        answer = http.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def of(**labels: Any) -> Labels:
    return tuple(sorted((name, str(value)) for name, value in labels.items()))


class TestRequests:
    def test_by_route_and_not_by_id(self, api: Api) -> None:
        job_id = api.submitted()["id"]
        with api.http() as http:
            for path in (f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}", "/v1/jobs/j_none", "/v1/odd"):
                http.get(path)
            http.request("SPELL", "/v1/jobs")
        found = scraped(api)
        requests = found["stoplab_http_requests_total"]
        assert requests[of(method="GET", route="/v1/jobs/{job_id}", status=200)] == 2
        assert requests[of(method="GET", route="/v1/jobs/{job_id}", status=404)] == 1
        assert requests[of(method="GET", route="unmatched", status=404)] == 1
        assert requests[of(method="POST", route="/v1/jobs", status=202)] == 1
        assert [key for key in requests if ("method", "other") in key]
        assert not any(job_id in str(key) or "SPELL" in str(key) for key in requests)
        seconds = found["stoplab_http_request_duration_seconds_count"]
        assert seconds[of(method="GET", route="/v1/jobs/{job_id}")] == 3

    def test_replays(self, api: Api) -> None:
        with api.http() as http:
            for _ in range(3):
                http.post("/v1/jobs", json={"spec": SPEC}, headers={"Idempotency-Key": "k"})
        assert scraped(api)["stoplab_idempotent_replays_total"][()] == 2

    def test_streams_that_are_open(self, api: Api) -> None:
        job_id = api.submitted()["id"]
        with api.http() as http:
            with http.stream("GET", f"/v1/jobs/{job_id}/events?follow=true") as answer:
                blocks = answer.iter_raw()
                next(blocks)
                assert scraped(api)["stoplab_event_streams_open"][()] == 1
            eventually(lambda: scraped(api)["stoplab_event_streams_open"][()] == 0)
        found = scraped(api)
        route = "/v1/jobs/{job_id}/events"
        assert found["stoplab_http_requests_total"][of(method="GET", route=route, status=200)] == 1
        assert (
            of(method="GET", route=route)
            not in found["stoplab_http_request_duration_seconds_count"]
        )

    def test_each_app_counts_for_itself(self, api: Api, tmp_path: Path) -> None:
        api.submitted()
        with running_api(tmp_path / "other") as other:
            assert "stoplab_http_requests_total" not in scraped(other)

    def test_who_may_ask(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(auth, "_from_loopback", lambda request: False)
        with api.http(None) as http:
            assert http.get("/metrics").status_code == 401
        with api.http("vera") as http:
            assert http.get("/metrics").status_code == 200

    def test_open_metrics_for_who_asks(self, api: Api) -> None:
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        with api.http(None) as http:
            answer = http.get("/metrics", headers=accept)
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        assert answer.text.endswith("# EOF\n")


class TestJobs:
    def test_states_kinds_and_the_queue(self, api: Api) -> None:
        first, second = api.submitted()["id"], api.submitted()["id"]
        api.moved(api.submitted(COMPARE)["id"], State.RUNNING)
        gone = api.moved(api.submitted()["id"], State.CANCELLED)
        api.store.hide(gone, actor="test")
        found = scraped(api)
        assert found["stoplab_jobs"] == {
            of(state="QUEUED", kind="pretrain"): 2, of(state="RUNNING", kind="compare"): 1
        }  # fmt: skip
        assert found["stoplab_queue_length"][()] == 2
        assert 0 <= found["stoplab_queue_oldest_age_seconds"][()] < 60
        api.moved(first, State.CANCELLED)
        api.moved(second, State.PAUSED)
        assert scraped(api)["stoplab_queue_oldest_age_seconds"][()] == 0

    def test_a_resumed_job_waits_since_it_was_resumed(self, api: Api) -> None:
        job = api.moved(api.submitted()["id"], State.PAUSED)
        time.sleep(0.3)  # what is measured here is time itself
        api.store.move(job, State.QUEUED, actor="test")
        assert scraped(api)["stoplab_queue_oldest_age_seconds"][()] < 0.3

    def test_samples_per_second_of_what_runs(self, api: Api) -> None:
        run = api.submitted()["id"]
        study = api.submitted(COMPARE)["id"]
        for job_id in (run, study):
            api.moved(job_id, State.RUNNING)
        write_json(api.folder(run).run("run").progress, {"samples_per_s": 100.0})
        for cell, speed in (("a-s0", 40.0), ("a-s1", 2.0), ("b-s0", None)):
            write_json(api.folder(study).run(cell).progress, {"samples_per_s": speed})
        old = api.folder(study).run("a-s2").progress
        write_json(old, {"samples_per_s": 7.0})
        os.utime(old, (1, 1))
        assert scraped(api)["stoplab_samples_per_second"] == {
            of(kind="pretrain"): 100, of(kind="compare"): 42
        }  # fmt: skip
        api.folder(run).run("run").progress.write_text("{")
        api.store.move(api.store.get(study), State.SUCCEEDED, actor="test")
        assert scraped(api)["stoplab_samples_per_second"] == {of(kind="pretrain"): 0}


class TestParts:
    def test_all_up(self, api: Api) -> None:
        found = scraped(api)
        assert [found[f"stoplab_{name}_up"][()] for name in ("database", "runner", "mlflow")] == [
            1, 1, 1
        ]  # fmt: skip
        (build,) = found["stoplab_build_info"]
        assert {name for name, _ in build} == {"version", "python"}
        assert "stoplab_reconcile_passes" not in found, "no reconciler runs here"

    def test_each_down(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        away = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
        with running_api(tmp_path, runner=NoRunner(), **away) as api:

            def broken() -> None:
                raise StoreUnavailable("gone")

            monkeypatch.setattr(api.store, "census", broken)
            found = scraped(api)
        assert [found[f"stoplab_{name}_up"][()] for name in ("database", "runner", "mlflow")] == [
            0, 0, 0
        ]  # fmt: skip
        assert "stoplab_jobs" not in found


class TestReconciler:
    def test_passes_and_failures(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with running_api(tmp_path, reconcile=True, reconcile_period_s=0.01) as api:
            first = eventually(lambda: scraped(api)["stoplab_reconcile_pass_seconds_count"][()])
            eventually(lambda: scraped(api)["stoplab_reconcile_pass_seconds_count"][()] > first)
            found = scraped(api)
            assert found["stoplab_reconcile_pass_seconds_sum"][()] > 0
            assert found["stoplab_reconcile_failures_total"][()] == 0

            def fail(*_: object) -> None:
                raise RuntimeError("odd")

            monkeypatch.setattr(api.store, "unfinished", fail)
            eventually(lambda: scraped(api)["stoplab_reconcile_failures_total"][()] > 1)
            lag = scraped(api)["stoplab_reconcile_lag_seconds"][()]
            eventually(lambda: scraped(api)["stoplab_reconcile_lag_seconds"][()] > lag)

    def test_attempts_recoveries_and_hours(self, tmp_path: Path) -> None:
        with running_api(tmp_path, capacity_cpus=8, capacity_gpus=1, reconcile=True) as api:
            pulse = api.lab.reconciler.pulse
            pulse.attempts, pulse.recoveries["OOM"] = 3, 2
            pulse.held = Resources(7200, 1800)
            pulse.reserved = Resources(2, 0.5)
            found = scraped(api)
        assert found["stoplab_attempts_started_total"][()] == 3
        assert found["stoplab_recoveries_total"] == {of(reason="OOM"): 2}
        assert found["stoplab_capacity"] == {of(resource="cpu"): 8, of(resource="gpu"): 1}
        assert found["stoplab_reserved"] == {of(resource="cpu"): 2, of(resource="gpu"): 0.5}
        assert found["stoplab_cpu_hours_total"][()] == 2
        assert found["stoplab_gpu_hours_total"][()] == 0.5


def test_no_names_are_told(api: Api) -> None:
    """Neither of people nor of jobs: the page is for everybody on the machine."""
    api.submitted({**SPEC, "name": "a-secret-name"}, labels={"team": "a-secret-team"})
    with api.http(None) as http:
        text = http.get("/metrics").text
    assert "a-secret" not in text
    assert '"ana"' not in text
