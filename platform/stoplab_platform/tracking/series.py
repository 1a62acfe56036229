"""Reading a run's metrics back: from MLflow, and what MLflow does not have yet from the spool."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from stoplab_platform.errors import TrackerUnavailable
from stoplab_platform.files import read_json
from stoplab_platform.paths import RunFolder
from stoplab_platform.tracking.lines import whole_lines
from stoplab_platform.tracking.mlflow_runs import history, last_values

Source = Literal["mlflow", "spool"]


class Point(NamedTuple):
    """One value of a metric."""

    step: int
    value: float
    at: int
    """Milliseconds since 1970."""


@dataclass(frozen=True)
class Recorded:
    """What was asked for, and who told it: MLflow with the spool's rest, or the spool alone."""

    source: Source
    series: Mapping[str, Sequence[Point]]


def read_series(folder: RunFolder, uri: str, run_id: str | None, names: Sequence[str]) -> Recorded:
    """All points of some metrics by step; none of one that the run has not logged.

    Raises TrackerUnavailable where MLflow is away and the run has left no spool here.
    """
    found: dict[str, list[Point]] = {name: [] for name in names}
    source, offset = _begin(folder, run_id)
    try:
        if run_id is not None:
            told = history(uri, run_id, names)
            source = "mlflow"
            found = {name: [Point(*one) for one in sorted(told[name])] for name in names}
    except TrackerUnavailable:
        if not folder.spool.exists():
            raise
        offset = 0
    for step, values, at in _spooled(folder, offset):
        for name in values.keys() & found.keys():
            known = found[name]
            if not known or step > known[-1].step:
                known.append(Point(step, values[name], at))
    return Recorded(source, found)


def read_last(
    folder: RunFolder, uri: str, run_id: str | None
) -> tuple[Source, Mapping[str, float]]:
    """The last value of every metric; raises as `read_series` does."""
    found: dict[str, float] = {}
    source, offset = _begin(folder, run_id)
    try:
        if run_id is not None:
            found, source = dict(last_values(uri, run_id)), "mlflow"
    except TrackerUnavailable:
        if not folder.spool.exists():
            raise
        offset = 0
    for _, values, _ in _spooled(folder, offset):
        found.update(values)
    return source, found


def thinned(points: Sequence[Point], most: int) -> Sequence[Point]:
    """At most ``most`` (4 or more) of the points, extremes among them.

    The first and the last stay; the others are cut into equal runs, of which the smallest and the
    largest value stay (a NaN counts as both). That is the min-max aggregation of Jugel et al., M4:
    A Visualization-Oriented Time Series Data Aggregation (VLDB 2014), without its other two.
    """
    if len(points) <= most:
        return points
    values = np.array([point.value for point in points])
    edges = np.linspace(1, len(points) - 1, max(1, (most - 2) // 2) + 1, dtype=int)
    kept = {0, len(points) - 1}
    for low, high in pairwise(edges):
        part = values[low:high]
        kept |= {int(low + part.argmin()), int(low + part.argmax())}
    return [points[index] for index in sorted(kept)]


def finite(value: float) -> float | None:
    """None for NaN and infinities; MLflow keeps an infinity as the largest number there is."""
    return value if math.isfinite(value) and abs(value) < 1.797e308 else None


def _begin(folder: RunFolder, run_id: str | None) -> tuple[Source, int]:
    """Whose word there is before MLflow is asked, and where in the spool that of MLflow ends."""
    # Read first: what is sent in the meantime is then seen twice, and taken once.
    sent = read_json(folder.spool_sent) or {}
    return "spool", int(sent.get("offset", 0)) if sent.get("run_id") == run_id else 0


def _spooled(folder: RunFolder, offset: int) -> Iterator[tuple[int, dict[str, float], int]]:
    """Step, values and time of the spool's lines of metrics from an offset on."""
    try:
        file = folder.spool.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        for line, _ in whole_lines(file):
            if line is not None and line["verb"] == "metrics":
                yield line["step"], line["values"], line["at"]
