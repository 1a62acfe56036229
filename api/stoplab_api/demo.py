"""The demo: a fresh lab, one paired comparison over REST, its result, and a clean end."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from stoplab_api import local
from stoplab_api.answers import TrialBody
from stoplab_api.bodies import JobBody
from stoplab_api.client import Client
from stoplab_api.lab_processes import LabError, tail
from stoplab_platform.errors import SettingsError
from stoplab_platform.files import read_json
from stoplab_platform.paths import JobFolder
from stoplab_platform.settings import Settings
from stoplab_platform.specs import ComparisonSpec, RunSpec, parse, read_yaml
from stoplab_platform.specs.ready import ready_spec

REFERENCE, OTHER = "deterministic", "stochastic"
LOG_LINES = 20

Watch = Callable[[Client, str, Callable[[], None]], JobBody]
"""Follows a job to its end, and calls a function at every look."""


@dataclass(frozen=True)
class Result:
    """What the demo found."""

    job_id: str
    comparison: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, float]]
    """Arm to its mean metrics on the test split."""
    random_init: Mapping[str, float]
    raw_pixels: Mapping[str, float]
    mlflow: Mapping[str, str | None]
    elapsed_s: float

    def document(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "job_id": self.job_id,
            "comparison": dict(self.comparison),
            "random_init": dict(self.random_init),
            "raw_pixels": dict(self.raw_pixels),
            "mlflow": dict(self.mlflow),
            "elapsed_s": round(self.elapsed_s, 1),
        }


def run(settings: Settings, num_seeds: int, watch: Watch, say: local.Say, *, keep: bool) -> Result:
    """Start the home's lab, run the comparison in it, and stop it (unless kept after success).

    Raises LabError when the comparison fails or a part of the lab dies.
    """
    began = time.monotonic()
    # Any free port: another lab may hold the usual ones.
    lab, _ = local.up(settings, {"api": 0, "mlflow": 0, "ray": 0}, say)
    kept = False
    try:
        with lab.client() as client:
            job = client.submit(comparison_spec(num_seeds, os.cpu_count() or 1))
            say(f"submitted {job.id}: {num_seeds} seeds in two arms")
            job = watch(client, job.id, lambda: _check(lab))
            if job.status.state != "SUCCEEDED":
                raise LabError(_failure(client, job))
            uri = lab.place.url("mlflow") if keep else f"sqlite:///{lab.home.mlflow_database}"
            result = Result(
                job_id=job.id,
                comparison=client.comparison(job.id),
                mlflow={"tracking_uri": uri, **_parent(lab, lab.home.job(job.id))},
                elapsed_s=time.monotonic() - began,
                **_means(client.trials(job.id).items),
            )
        kept = keep
        return result
    finally:
        if not kept:
            say("stopping the lab")
            local.down(lab, say, pause=False)


def fresh_settings(folder: Path | None) -> Settings:
    """Settings for a home that nobody has used; a temporary folder where none is named."""
    if folder is None:
        folder = Path(tempfile.mkdtemp(prefix="stoplab-demo-"))
    elif folder.exists() and any(folder.iterdir()):
        raise SettingsError(f"{folder} is not empty; the demo wants a folder of its own")
    settings = Settings(home=folder.absolute())
    if settings.database_url is not None:
        raise SettingsError("unset STOPLAB_DATABASE_URL: the demo wants a store of its own")
    return settings


def comparison_spec(num_seeds: int, num_cpus: int) -> ComparisonSpec:
    """Deterministic against stochastic positions on digits, judged by kNN on the test split."""
    base = parse(RunSpec, read_yaml(config("digits.yaml").read_text()))
    at_once = max(1, int(num_cpus / base.compute.cpus_per_worker))
    return parse(
        ComparisonSpec,
        {
            "kind": "compare",
            "name": "demo",
            "base": base.plain(),
            "arms": {REFERENCE: {"positions.kind": "deterministic"}, OTHER: {}},
            "seeds": list(range(num_seeds)),
            "primary": {"metric": "test/knn_top1"},
            "limits": {"max_concurrent": min(at_once, 2 * num_seeds)},
        },
    )


def config(name: str) -> Path:
    """A spec that comes with the trainers."""
    path = ready_spec(name)
    if path is None:
        raise LabError("the trainers are not installed: pip install 'stoplab[all]'")
    return path


def _check(lab: local.Lab) -> None:
    for part in lab.dead():
        log = lab.home.server_log(part)
        raise LabError(f"{part} died; the end of {log}:\n{tail(log)}")


def _failure(client: Client, job: JobBody) -> str:
    log = "".join(client.logs(job.id, tail=LOG_LINES))
    return f"{job.id} {job.status.state}: {job.status.message}\nthe end of its log:\n{log}"


def _means(trials: Sequence[TrialBody]) -> dict[str, Mapping[str, Any]]:
    """Means over runs, of each arm and of what needs no training; keys are `test/...`."""
    return {
        "arms": {
            arm: _mean([t.metrics for t in trials if t.arm == arm], "test")
            for arm in (REFERENCE, OTHER)
        },
        "random_init": _mean([trial.metrics for trial in trials], "init"),
        "raw_pixels": _mean([trial.metrics for trial in trials], "pixels"),
    }


def _mean(runs: Sequence[Mapping[str, float]], prefix: str) -> dict[str, float]:
    names = sorted({name for run in runs for name in run if name.startswith(f"{prefix}/")})
    return {
        f"test/{name.partition('/')[2]}": fmean(run[name] for run in runs if name in run)
        for name in names
    }


def _parent(lab: local.Lab, folder: JobFolder) -> dict[str, str | None]:
    """The comparison's own run in MLflow."""
    run_id = (read_json(folder.tracked) or {}).get("run_id")
    if run_id is None:
        return {"experiment_id": None, "parent_run_id": None}
    # MLflow takes seconds to import, and the lab starts faster without them.
    from stoplab_platform.tracking import client

    info = client(lab.place.url("mlflow")).get_run(run_id).info
    return {"experiment_id": info.experiment_id, "parent_run_id": run_id}
