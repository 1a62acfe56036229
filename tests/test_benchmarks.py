"""The benchmarks of a run: a quick look at each, with what it asserts, and the page of results."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CASES = {
    "step": ["step", "utilisation"], "masks": ["masks"], "metrics": ["metrics"],
    "checkpoint": ["checkpoint", "of_whole"],
}  # fmt: skip


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Imports a benchmark by its name, for the one test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == BENCHMARKS:
            del sys.modules[name]


@pytest.mark.parametrize("name", CASES)
def test_a_quick_look(modules: Any, name: str) -> None:
    """Both sides did the same; how fast they were is for `make bench` to judge."""
    results = modules(name).results(quick=True)
    assert [result.name for result in results] == CASES[name]
    for result in results:
        low, high = result.quartiles
        assert 0 < low <= result.ratio <= high


@pytest.mark.slow
def test_gpu_benchmarks_run_on_a_processor_too(modules: Any) -> None:
    """What they tell there says nothing of a GPU."""
    names = [result.name for result in modules("mfu").results(quick=True)]
    assert names == ["vit_b16", "vit_b16_256", "vit_l16", "vit_h14"]
    (result,) = modules("bf16").results(quick=True)
    assert 0 < result.ratio < result.at_most


@pytest.mark.ray
@pytest.mark.slow
def test_ray_train_does_the_same(modules: Any) -> None:
    (result,) = modules("ray_train").results(quick=True)
    assert (result.name, result.at_most) == ("ray_train", 1.05)


@pytest.mark.slow
def test_workers_do_the_same(modules: Any) -> None:
    (result,) = modules("workers").results(quick=True)
    assert (result.name, result.floor) == ("workers", 0.9)


def test_losses_that_differ_are_no_result(modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = modules("step")
    monkeypatch.setattr(step, "TOLERANCE", -1.0)
    with pytest.raises(AssertionError, match="apart"):
        step.results(quick=True)


def test_the_page_shows_few_cases_one_by_one(modules: Any) -> None:
    bench, harness = modules("bench"), modules("harness")
    results = [
        harness.Result("step", 1.25, (1.2, 1.3), 1.15, 1.3, None, True),
        harness.Result("utilisation", 0.45, (0.44, 0.46), 0.5, 0.6, None, False),
        harness.Result("beside", 1.1, (1.0, 1.2), None, None, None, True),
    ]
    step = {**asdict(results[1]), "name": "step", "cases": [asdict(one) for one in results]}
    metrics = asdict(harness.Result("metrics", 0.0031, (0.003, 0.004), None, None, 0.02, True))
    page = bench.page("2026-01-01", [0.1], [step, metrics])
    assert "| step | 1.25 [1.20, 1.30]; at least 1.15 (aim 1.3): passed |" in page
    assert "| step: utilisation | 0.45 [0.44, 0.46]; at least 0.5 (aim 0.6): **missed** |" in page
    assert "| step: beside | 1.10 [1.00, 1.20] |" in page
    assert "| metrics | 0.0031 [0.0030, 0.0040]; at most 0.02: passed |" in page
    many = {**step, "cases": step["cases"] * 2}
    assert bench.page("2026-01-01", [0.1], [many]).count("| step |") == 1
