"""Metrics read back: a real MLflow store, the spool beside it, and thinning."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoplab_platform.errors import TrackerUnavailable
from stoplab_platform.files import read_json, write_json
from stoplab_platform.paths import RunFolder
from stoplab_platform.tracking import (
    Point,
    SpoolTracker,
    drain,
    finite,
    read_last,
    read_series,
    thinned,
)
from support_mlflow import IDENTITY

AWAY = "http://127.0.0.1:9"
LOSS = "train/loss"


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with 30 points of loss in its spool, none sent."""
    folder = RunFolder(tmp_path / "run")
    log(folder, range(30))
    return folder


def log(folder: RunFolder, steps: range) -> None:
    tracker = SpoolTracker(folder, None)
    tracker.start(IDENTITY, {})
    for step in steps:
        tracker.metrics(step, {LOSS: 1 / (step + 1), "train/lr": 0.1})
    tracker.close()


def sent(folder: RunFolder, uri: str) -> str:
    assert drain(folder, uri, timeout_s=60)
    run_id: str = (read_json(folder.spool_sent) or {})["run_id"]
    return run_id


def steps(points: object) -> list[int]:
    assert isinstance(points, list)
    return [point.step for point in points]


def test_mlflow_and_what_it_does_not_have_yet(run: RunFolder, mlflow_uri: str) -> None:
    run_id = sent(run, mlflow_uri)
    log(run, range(30, 33))
    found = read_series(run, mlflow_uri, run_id, [LOSS, "none"])
    assert found.source == "mlflow"
    assert steps(found.series[LOSS]) == list(range(33))
    assert found.series["none"] == []
    first = found.series[LOSS][0]
    assert (first.value, first.at > 1.6e12) == (1.0, True)
    source, last = read_last(run, mlflow_uri, run_id)
    assert (source, last) == ("mlflow", {LOSS: 1 / 33, "train/lr": 0.1})


def test_what_was_sent_meanwhile_is_taken_once(run: RunFolder, mlflow_uri: str) -> None:
    run_id = sent(run, mlflow_uri)
    write_json(run.spool_sent, {"offset": 0, "run_id": run_id})
    assert steps(read_series(run, mlflow_uri, run_id, [LOSS]).series[LOSS]) == list(range(30))


def test_without_mlflow_the_spool_tells_all(run: RunFolder, mlflow_uri: str) -> None:
    run_id = sent(run, mlflow_uri)
    last = {LOSS: 1 / 30, "train/lr": 0.1}
    assert read_last(run, mlflow_uri, "0" * 32) == ("spool", last), "deleted in MLflow"
    for uri, known in ((AWAY, run_id), (mlflow_uri, None)):
        if known is None:
            run.spool_sent.unlink()
        found = read_series(run, uri, known, [LOSS])
        assert (found.source, steps(found.series[LOSS])) == ("spool", list(range(30)))
        assert read_last(run, uri, known) == ("spool", last)


def test_with_neither_it_says_so(tmp_path: Path) -> None:
    empty = RunFolder(tmp_path / "empty")
    with pytest.raises(TrackerUnavailable):
        read_series(empty, AWAY, "0" * 32, [LOSS])
    with pytest.raises(TrackerUnavailable):
        read_last(empty, AWAY, "0" * 32)
    assert read_last(empty, AWAY, None) == ("spool", {}), "a run that has said nothing yet"


def test_a_line_that_is_being_written_is_left_out(run: RunFolder, mlflow_uri: str) -> None:
    with run.spool.open("ab") as file:
        file.write(b'{"at": 1, "verb": "metrics", "step": 99, "val')
    assert steps(read_series(run, mlflow_uri, None, [LOSS]).series[LOSS])[-1] == 29


def test_numbers_that_are_none(tmp_path: Path, mlflow_uri: str) -> None:
    folder = RunFolder(tmp_path / "odd")
    tracker = SpoolTracker(folder, None)
    tracker.start(IDENTITY, {})
    odd = (math.nan, math.inf, -math.inf, 1.0)
    for step, value in enumerate(odd):
        tracker.metrics(step, {LOSS: value})
    tracker.close()
    for run_id in (None, sent(folder, mlflow_uri)):
        found = read_series(folder, mlflow_uri, run_id, [LOSS]).series[LOSS]
        assert [finite(point.value) for point in found] == [None, None, None, 1.0]


def curve(values: list[float]) -> list[Point]:
    return [Point(step, value, 0) for step, value in enumerate(values)]


@given(st.lists(st.floats(-1e6, 1e6), max_size=400), st.integers(4, 60))
def test_thinning_keeps_ends_and_extremes(values: list[float], most: int) -> None:
    every = curve(values)
    kept = list(thinned(every, most))
    assert len(kept) <= max(most, 0)
    assert steps(kept) == sorted({point.step for point in kept})
    assert set(kept) <= set(every)
    if len(every) <= most:
        assert kept == every
        return
    assert (kept[0], kept[-1]) == (every[0], every[-1])
    assert {max(values), min(values)} <= {point.value for point in kept}


def test_thinning_shows_a_nan() -> None:
    values = [1.0] * 1000
    values[500] = math.nan
    assert any(math.isnan(point.value) for point in thinned(curve(values), 20))


def test_thinning_uses_its_room() -> None:
    assert 480 <= len(thinned(curve([math.sin(x) for x in range(10_000)]), 500)) <= 500
