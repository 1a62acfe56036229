"""The cell ledger of a sweep or comparison: one atomic file a cell, in the job's folder.

The driver writes it, each start goes on from it, REST and the command line read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from stoplab_platform.files import read_json, write_atomic
from stoplab_platform.paths import JobFolder


class CellState(StrEnum):
    """Where a cell stands."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"
    PRUNED = "PRUNED"
    INFEASIBLE = "INFEASIBLE"


DONE = frozenset({CellState.SUCCEEDED, CellState.PRUNED, CellState.INFEASIBLE})
"""States that no later start changes: all others run (again)."""


class Cell(BaseModel):
    """One run of a study: point x seed, or arm x seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    """Name of its file and of its run's folder: `p-3f2a91c07d-s0`, `stochastic-s2`."""
    index: int
    """Place in the order of the study."""
    arm: str | None = None
    """A comparison's arm."""
    point: dict[str, Any] = {}
    """A sweep's point: dotted field (or `masking_ratio`) to value."""
    seed: int
    """The run's seed."""
    member: int | None = None
    """Of population-based training: the member whose leg this is."""
    generation: int | None = None
    """Of population-based training: which of the member's legs, from 0."""
    parent: str | None = None
    """The cell from whose last weights this one goes on."""
    state: CellState = CellState.PENDING
    """Where it stands."""
    run_digest: str | None = None
    """Identity of the run's weights."""
    mlflow_run_id: str | None = None
    """Its run in MLflow."""
    metrics: dict[str, float] = {}
    """Final metrics: `val/knn_top1`, `test/...`, `init/...`, `pixels/...`; of a PRUNED one the
    last validation scores."""
    pruned_epoch: int | None = None
    """Of a PRUNED one: the epoch of its last scores."""
    certificate: dict[str, str] = {}
    """Hashes that prove the pairing: `init`, `samples`, `masks`, ..."""
    adopted: bool = False
    """Whether an earlier job ran it; its hours are that job's."""
    error: str | None = None
    """Why it failed, for people."""
    started_at: datetime | None = None
    """First start."""
    finished_at: datetime | None = None
    """End; null while it runs again."""
    resumed_at: datetime | None = None
    """Start of the stretch it is in; null while it does not run."""
    ran_s: float = 0.0
    """Seconds it ran in all earlier stretches; a pause between them is not counted."""

    def seconds(self, now: datetime) -> float:
        """How long it has run by ``now``, without its pauses."""
        return self.ran_s + (_between(self.resumed_at, now) if self.resumed_at else 0.0)


class Ledger:
    """Reads and writes the cells of one job."""

    def __init__(self, folder: JobFolder) -> None:
        self._folder = folder.cells

    def plan(self, cells: list[Cell]) -> None:
        """Write the cells that are not there yet; those that are keep what they know.

        Only their place in the order is taken anew: a study that was extended has another.
        """
        for cell in cells:
            try:
                known = self.get(cell.id)
            except KeyError:
                self._write(cell)
                continue
            if known.index != cell.index:
                self._write(known.model_copy(update={"index": cell.index}))

    def cells(self) -> list[Cell]:
        """All cells in the order of the study."""
        found = [self.get(path.stem) for path in self._folder.glob("*.json")]
        return sorted(found, key=lambda cell: (cell.index, cell.id))

    def get(self, cell_id: str) -> Cell:
        """One cell; KeyError where there is none."""
        data = read_json(self._path(cell_id))
        if data is None:
            raise KeyError(cell_id)
        return Cell.model_validate(data)

    def update(self, cell_id: str, *, at: datetime | None = None, **changes: Any) -> Cell:
        """Replace fields of one cell; its times are stamped by its state, ``at`` or now."""
        cell, now = self.get(cell_id), at or datetime.now(UTC)
        times: dict[str, Any] = {"ran_s": cell.seconds(now)} if "state" in changes else {}
        match changes.get("state"):
            case CellState.RUNNING:
                started = {"started_at": cell.started_at or now, "finished_at": None}
                times |= {**started, "resumed_at": now}
            case CellState.PENDING:
                times |= {"finished_at": None, "resumed_at": None}
            case str():
                times |= {"finished_at": now, "resumed_at": None}
        fresh = Cell.model_validate({**cell.model_dump(), **times, **changes})
        self._write(fresh)
        return fresh

    def counts(self) -> Mapping[str, int]:
        """Cells by state."""
        counts: dict[str, int] = {}
        for cell in self.cells():
            counts[cell.state] = counts.get(cell.state, 0) + 1
        return counts

    def _write(self, cell: Cell) -> None:
        write_atomic(self._path(cell.id), cell.model_dump_json(indent=1) + "\n")

    def _path(self, cell_id: str) -> Path:
        return self._folder / f"{cell_id}.json"


def _between(begin: datetime, end: datetime) -> float:
    return max(0.0, (end - begin).total_seconds())
