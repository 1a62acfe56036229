"""From submit to the first line of the entrypoint on a real Ray head: ours beyond Ray's own.

    python benchmarks/first_line.py [--json]

Ours: POST /v1/jobs until the line stands in the job's driver.log, with the queue, the reconciler,
Ray Jobs and the supervisor between them. Ray's own: `JobSubmissionClient.submit_job` of the same
command until the line stands in its log. Both on one head, by turns.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pair import BODY
from ray.job_submission import JobSubmissionClient

from stoplab_api import app as api_app
from stoplab_platform.reconciler import Reconciler
from stoplab_platform.runner.ray_jobs import RayJobsRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support_api import Api, running_api
from support_ray import RayHead, ray_head

LINE = "the-first-line"
COMMAND = ["sh", "-c", f"echo {LINE}"]
ROUNDS, MOST_S = 8, 1.5


def main() -> int:
    """Measure by turns, print, and end with 1 beyond the bound."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    # The trainer would import torch first; both sides run the same few words instead.
    api_app.Reconciler = partial(Reconciler, command=COMMAND)  # type: ignore[misc,assignment]
    with ray_head() as head, tempfile.TemporaryDirectory(prefix="stoplab-bench-") as folder:
        runner = RayJobsRunner(head.dashboard, head.token_path)
        with running_api(Path(folder), runner=runner, reconcile=True, capacity_cpus=2) as api:
            by_ray, by_us = rays_own(head), ours(api)
            by_ray(), by_us()  # the first of each warms the head up
            pairs = [(by_ray(), by_us()) for _ in range(ROUNDS)]
        runner.close()
    beyond = [us - ray for ray, us in pairs]
    low, value, high = statistics.quantiles(beyond, n=4)
    told = {
        "name": "first_line", "seconds_beyond": round(value, 3),
        "quartiles": [round(low, 3), round(high, 3)], "at_most": MOST_S,
        "ray_s": round(statistics.median(ray for ray, _ in pairs), 3),
        "ours_s": round(statistics.median(us for _, us in pairs), 3), "passed": value <= MOST_S,
    }  # fmt: skip
    verdict = "passed" if told["passed"] else "FAILED"
    print(json.dumps(told) if as_json else f"first_line {value:6.2f} s beyond Ray's own {verdict}")
    return 0 if told["passed"] else 1


def ours(api: Api) -> Callable[[], float]:
    """Seconds of one job of ours."""
    http = api.http("root")

    def once() -> float:
        began = time.perf_counter()
        answer = http.post("/v1/jobs", content=BODY)
        assert answer.status_code == 202, answer.text
        log = api.folder(answer.json()["id"]).driver_log
        until(lambda: log.exists() and LINE in log.read_text())
        seconds = time.perf_counter() - began
        job = answer.json()["links"]["self"]
        until(lambda: http.get(job).json()["finished_at"])
        return seconds

    return once


def rays_own(head: RayHead) -> Callable[[], float]:
    """Seconds of one job of Ray's."""
    token = head.token_path.read_text().strip()
    client = JobSubmissionClient(head.dashboard, headers={"Authorization": f"Bearer {token}"})

    def once() -> float:
        began = time.perf_counter()
        job_id = client.submit_job(entrypoint=" ".join([*COMMAND[:2], f"'{COMMAND[2]}'"]))
        until(lambda: LINE in client.get_job_logs(job_id))
        seconds = time.perf_counter() - began
        until(lambda: client.get_job_status(job_id).is_terminal())
        return seconds

    return once


def until(condition: Callable[[], object]) -> None:
    """Wait for a true value."""
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the line did not come")
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
