"""What a scrape is told of the lab: asked for anew each time, by three queries and two probes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from stoplab_api import probes
from stoplab_api.context import Lab
from stoplab_platform.admission import capacity
from stoplab_platform.errors import StoreUnavailable
from stoplab_platform.files import read_json
from stoplab_platform.jobs.census import Census
from stoplab_platform.jobs.states import STUDIES
from stoplab_platform.paths import JobFolder

FRESH_S = 60.0
"""A progress file that was not replaced for so long tells of no work."""
HOUR_S = 3600.0


class LabCollector(Collector):
    """Gauges and counters of one lab, as this server sees it."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def collect(self) -> Iterator[Metric]:
        """Everything; what the database would tell is left out while it is away."""
        census = self._census()
        yield _gauge("database_up", "The database answers.", census is not None)
        yield _gauge("runner_up", "The cluster answers.", probes.runner(self._lab) is None)
        yield _gauge("mlflow_up", "MLflow answers.", probes.mlflow(self._lab) is None)
        if census is not None:
            yield from self._jobs(census)
        if self._lab.heart is not None:
            yield from self._reconciler()

    def _census(self) -> Census | None:
        try:
            return self._lab.store.census()
        except StoreUnavailable:
            return None

    def _jobs(self, census: Census) -> Iterator[Metric]:
        counts: dict[tuple[str, ...], float] = {
            (str(state), kind): number for (state, kind), number in census.counts.items()
        }
        yield _labelled("jobs", "Jobs by state and kind.", ("state", "kind"), counts)
        yield _gauge("queue_length", "Queued jobs.", census.queued)
        yield _gauge(
            "queue_oldest_age_seconds", "How long the first of them waits.", census.oldest_wait_s
        )
        speeds: dict[tuple[str, ...], float] = defaultdict(float)
        for job_id, kind in census.running:
            speeds[(kind,)] += samples_per_s(self._lab.settings.folders.job(job_id), kind)
        yield _labelled(
            "samples_per_second", "Images trained on, by running jobs.", ("kind",), speeds
        )

    def _reconciler(self) -> Iterator[Metric]:
        pulse, has = self._lab.reconciler.pulse, capacity(self._lab.settings)
        yield _gauge("reconcile_lag_seconds", "Since a pass came to a good end.", pulse.age_s)
        yield SummaryMetricFamily(
            "stoplab_reconcile_pass_seconds", "Passes.", pulse.passes, pulse.seconds
        )
        yield _counter("reconcile_failures", "Passes that failed.", pulse.failures)
        yield _counter(
            "reconcile_job_failures", "Jobs that a pass could not look after.", pulse.lost_sight
        )
        yield _counter("attempts_started", "Attempts handed to the cluster.", pulse.attempts)
        recoveries = CounterMetricFamily(
            "stoplab_recoveries", "Attempts that ended unexpectedly.", labels=("reason",)
        )
        for reason, number in sorted(pulse.recoveries.items()):
            recoveries.add_metric((reason,), number)
        yield recoveries
        yield _labelled(
            "capacity", "Declared for all jobs.", ("resource",), _pair(has.cpus, has.gpus)
        )
        yield _labelled(
            "reserved", "By active jobs.", ("resource",),
            _pair(pulse.reserved.cpus, pulse.reserved.gpus),
        )  # fmt: skip
        yield _counter("cpu_hours", "Reserved by active jobs.", pulse.held.cpus / HOUR_S)
        yield _counter("gpu_hours", "Reserved by active jobs.", pulse.held.gpus / HOUR_S)


def samples_per_s(folder: JobFolder, kind: str) -> float:
    """How fast a job trains at this moment; a study is as fast as its runs together."""
    runs = folder.each_run() if kind in STUDIES else (folder.run("run"),)
    return sum(_speed(run.progress) for run in runs)


def _speed(progress: Path) -> float:
    # Replaced while we look, or written by another release: then it is told at the next scrape.
    with suppress(OSError, ValueError, TypeError, AttributeError):
        if time.time() - progress.stat().st_mtime < FRESH_S:
            return float((read_json(progress) or {}).get("samples_per_s") or 0)
    return 0.0


def _pair(cpus: float, gpus: float) -> dict[tuple[str, ...], float]:
    return {("cpu",): cpus, ("gpu",): gpus}


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"stoplab_{name}", text, float(value))


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"stoplab_{name}", text, value)


def _labelled(
    name: str, text: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], float]
) -> Metric:
    family = GaugeMetricFamily(f"stoplab_{name}", text, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family
