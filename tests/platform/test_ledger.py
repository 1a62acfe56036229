"""The cell ledger: what is done stays done over restarts."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from stoplab_platform.ledger import Cell, CellState, Ledger
from stoplab_platform.paths import Home, JobFolder


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    return Home(tmp_path).job("j_1")


def cells(count: int = 3) -> list[Cell]:
    return [
        Cell(id=f"p{index:03}-s0", index=index, point={"positions.noise_std": index / 10}, seed=0)
        for index in range(count)
    ]


def test_a_plan_is_written_and_read_in_its_order(folder: JobFolder) -> None:
    planned = [Cell(id=name, index=i, seed=0) for i, name in enumerate(("z", "a", "m"))]
    Ledger(folder).plan(planned)
    assert Ledger(folder).cells() == planned


def test_planning_again_keeps_what_is_known_and_adds_what_is_new(folder: JobFolder) -> None:
    ledger = Ledger(folder)
    ledger.plan(cells(2))
    ledger.update("p000-s0", state=CellState.SUCCEEDED, metrics={"val/knn_top1": 0.5})
    Ledger(folder).plan(cells(3))
    states = [cell.state for cell in Ledger(folder).cells()]
    assert states == ["SUCCEEDED", "PENDING", "PENDING"]
    assert Ledger(folder).get("p000-s0").metrics == {"val/knn_top1": 0.5}


def test_start_and_end_are_stamped_once(folder: JobFolder) -> None:
    ledger = Ledger(folder)
    ledger.plan(cells())
    assert ledger.get("p000-s0").started_at is None
    running = ledger.update("p000-s0", state=CellState.RUNNING)
    assert running.started_at is not None
    assert running.finished_at is None
    again = ledger.update("p000-s0", mlflow_run_id="r1")
    assert again.started_at == running.started_at
    failed = ledger.update("p000-s0", state=CellState.FAILED, error="it broke")
    assert failed.finished_at is not None
    assert failed.finished_at >= running.started_at
    assert ledger.get("p000-s0") == failed


def test_a_cell_that_runs_again_has_a_new_end(folder: JobFolder) -> None:
    ledger = Ledger(folder)
    ledger.plan(cells())
    stopped = ledger.update("p000-s0", state=CellState.STOPPED)
    running = ledger.update("p000-s0", state=CellState.RUNNING)
    assert running.finished_at is None
    done = ledger.update("p000-s0", state=CellState.SUCCEEDED)
    assert stopped.finished_at is not None
    assert done.finished_at is not None
    assert done.finished_at > stopped.finished_at


def test_counts(folder: JobFolder) -> None:
    ledger = Ledger(folder)
    ledger.plan(cells())
    ledger.update("p001-s0", state=CellState.INFEASIBLE)
    assert ledger.counts() == {"PENDING": 2, "INFEASIBLE": 1}


def test_unknown_cells_and_unknown_fields(folder: JobFolder) -> None:
    ledger = Ledger(folder)
    ledger.plan(cells())
    with pytest.raises(KeyError, match="p009-s0"):
        ledger.get("p009-s0")
    with pytest.raises(ValidationError):
        ledger.update("p000-s0", colour="red")
    assert ledger.get("p000-s0") == cells()[0]


def test_a_draft_left_by_a_kill_is_no_cell(folder: JobFolder) -> None:
    ledger = Ledger(folder)
    ledger.plan(cells(1))
    (folder.cells / ".p000-s0.json.12345678").write_text('{"id": "p0')
    assert [cell.id for cell in ledger.cells()] == ["p000-s0"]
