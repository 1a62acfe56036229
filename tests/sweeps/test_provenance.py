from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stoplab_platform.files import write_json
from stoplab_platform.ledger import Cell, CellState, Ledger
from stoplab_platform.masks import effective_ratio
from stoplab_platform.paths import JobFolder
from stoplab_sweeps.provenance import notes
from support_studies import certificate, comparison, finished

NOISE = "positions.noise_std"
RATIO = effective_ratio(comparison().base.masking, comparison().base.grid)
ARMS = ("deterministic", "stochastic")


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return JobFolder(tmp_path / "jobs" / "j_compare")


def cells(*seeds: int, **changes: Any) -> list[Cell]:
    return [
        finished(arm, seed, 0.5, run_digest=f"{arm}-{seed}", **changes)
        for seed in seeds for arm in ARMS
    ]  # fmt: skip


def swept(
    folder: JobFolder, *runs: tuple[str, int, str], points: dict[str, Any] | None = None
) -> None:
    """A finished sweep beside the comparison: (point, seed, run digest) of its runs."""
    Ledger(JobFolder(folder.root.parent / "j_sweep")).plan([
        Cell(id=f"p-{point}-s{seed}", index=n, seed=seed, state=CellState.SUCCEEDED,
             run_digest=digest, point=(points or {}).get(point, {}))
        for n, (point, seed, digest) in enumerate(runs)
    ])  # fmt: skip


def test_there_is_nothing_to_say_of_fresh_runs(folder: JobFolder) -> None:
    swept(folder, ("a", 0, "another"), ("b", 0, "one"))
    assert notes(comparison(), folder, cells(0, 1)) == []


class TestAddedSeeds:
    def test_they_are_told_with_the_job_they_join(self, folder: JobFolder) -> None:
        write_json(folder.origin, {"retry_of": None, "extends": "j_first"})
        both = [*cells(0, 1, adopted=True), *cells(2)]
        (note,) = notes(comparison(), folder, both)
        assert "1 seeds were added to the 2 of j_first" in note
        assert "0.05" in note

    def test_planned_looks_allow_for_them(self, folder: JobFolder) -> None:
        write_json(folder.origin, {"retry_of": None, "extends": "j_first"})
        primary = {"metric": "test/knn_top1", "looks": [2, 3]}
        both = [*cells(0, 1, adopted=True), *cells(2)]
        assert notes(comparison(primary=primary), folder, both) == []

    def test_a_retry_adds_none(self, folder: JobFolder) -> None:
        write_json(folder.origin, {"retry_of": "j_first", "extends": None})
        assert notes(comparison(), folder, [*cells(0, adopted=True), *cells(1, 2)]) == []


class TestChosenOnTheSameRuns:
    def test_a_sweeps_own_runs_are_told(self, folder: JobFolder) -> None:
        swept(folder, ("a", 0, "stochastic-0"), ("a", 1, "stochastic-1"), ("b", 0, "worse"))
        (note,) = notes(comparison(), folder, cells(0, 1, 2))
        assert "2 runs of stochastic are runs of the sweep j_sweep too" in note

    def test_other_seeds_are_fresh(self, folder: JobFolder) -> None:
        swept(folder, ("a", 0, "stochastic-0"), ("b", 0, "worse"))
        assert notes(comparison(), folder, cells(1, 2)) == []

    def test_another_run_of_the_same_settings_on_these_seeds_is_told(
        self, folder: JobFolder
    ) -> None:
        """Such as one of more epochs, or under another number of threads."""
        points = {"a": {NOISE: 0.25, "masking_ratio": RATIO}, "b": {NOISE: 0.5}}
        swept(folder, *((name, s, f"{name}{s}") for name in points for s in (0, 1)), points=points)
        (note,) = notes(comparison(), folder, cells(0, 1, 2))
        assert "the sweep j_sweep has tried the settings of stochastic on seeds 0, 1 too" in note
        assert notes(comparison(), folder, cells(2, 3)) == []

    @pytest.mark.parametrize("point", [{NOISE: 0.1}, {NOISE: 0.25, "masking_ratio": 0.9}])
    def test_other_settings_are_no_choice_of_this_one(
        self, folder: JobFolder, point: dict[str, Any]
    ) -> None:
        points = {"a": point, "b": {NOISE: 0.5}}
        swept(folder, ("a", 0, "a0"), ("b", 0, "b0"), points=points)
        assert notes(comparison(), folder, cells(0, 1)) == []

    def test_a_single_point_chose_nothing(self, folder: JobFolder) -> None:
        swept(folder, ("a", 0, "stochastic-0"), ("a", 1, "stochastic-1"))
        assert notes(comparison(), folder, cells(0, 1)) == []


def test_blocks_from_unlike_machines_are_told(folder: JobFolder) -> None:
    parts = [
        cells(seed, certificate={**certificate(seed), "precision": precision, "device": "cpu"})
        for seed, precision in enumerate(("fp32", "fp32", "bf16"))
    ]
    (note,) = notes(comparison(), folder, [cell for part in parts for cell in part])
    assert "precision (seeds: fp32 in 0, 1; bf16 in 2)" in note
