"""Watching a study: a line as each cell starts and ends, and progress.json for others."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from stoplab_platform.files import read_json, write_json
from stoplab_platform.ledger import Cell, CellState, Ledger
from stoplab_platform.paths import JobFolder
from stoplab_platform.specs import ComparisonSpec, SweepSpec
from stoplab_sweeps.best import best_of
from stoplab_sweeps.cells import StudySpec, expected, name_of
from stoplab_sweeps.space import label

PERIOD_S = 2.0
LINE_METRICS = 3  # metrics in the line of a finished cell
ENDED = (CellState.SUCCEEDED, CellState.PRUNED, CellState.FAILED)


class Watch:
    """Reads the ledger and the runs' own progress while the block lasts.

    What it knows comes from files, so it does not matter where and by whom cells are run.
    """

    def __init__(self, spec: StudySpec, folder: JobFolder, say: Callable[[str], None]) -> None:
        self._spec, self._folder, self._ledger = spec, folder, Ledger(folder)
        objective = spec.primary if isinstance(spec, ComparisonSpec) else spec.objective
        self._metric = objective.metric
        self._say = say
        cells = self._ledger.cells()
        self._seen = {cell.id: cell.state for cell in cells}
        self._began, self._units_before = time.monotonic(), self._units(cells)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="stoplab-watch", daemon=True)

    def __enter__(self) -> Self:
        self.look()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()
        self.look()

    def look(self) -> None:
        """Say what has changed, and write progress.json."""
        cells = self._ledger.cells()
        for cell in cells:
            before = self._seen.get(cell.id)
            if cell.state != before:
                self._seen[cell.id] = cell.state
                self._tell(cell, before, cells)
        write_json(self._folder.progress, self.progress(cells))

    def progress(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """A study counts cells; the time left comes from the pace since this attempt began.

        A sweep tells its best point so far as well: `best`, as `best.Best.plain` has it.
        """
        total = self._total(cells)
        units = self._units(cells)
        done, elapsed = units - self._units_before, time.monotonic() - self._began
        return {
            "step": sum(cell.state in ENDED for cell in cells),
            "steps": total,
            "epoch": 0,
            "eta_s": round((total - units) * elapsed / done, 1) if done > 0 else None,
            "samples_per_s": None,
            **self._best(cells),
        }

    def _total(self, cells: Sequence[Cell]) -> int:
        planned = sum(cell.state is not CellState.INFEASIBLE for cell in cells)
        never = sum(c.state is CellState.INFEASIBLE and c.generation is not None for c in cells)
        return max(planned, (expected(self._spec) or 0) - never)

    def _best(self, cells: Sequence[Cell]) -> dict[str, Any]:
        if not isinstance(self._spec, SweepSpec):
            return {}
        found = best_of(self._spec, cells)
        return {"best": None if found is None else found.plain()}

    def _units(self, cells: Sequence[Cell]) -> float:
        """Cells that ended, and the parts of those that run."""
        return math.fsum(1.0 if cell.state in ENDED else self._part(cell) for cell in cells)

    def _part(self, cell: Cell) -> float:
        if cell.state not in (CellState.RUNNING, CellState.STOPPED):
            return 0.0
        found = read_json(self._folder.run(cell.id).progress) or {"step": 0, "steps": 1}
        return float(found["step"] / max(1, found["steps"]))

    def _tell(self, cell: Cell, before: CellState | None, cells: Sequence[Cell]) -> None:
        total = max(len(cells), expected(self._spec) or 0)
        which = f"[{cell.index + 1}/{total}] {name_of(cell)}"
        if before is not CellState.RUNNING and cell.state in ENDED:
            self._say(f"{which}  started")  # it came and went between two looks
        if cell.state is CellState.RUNNING:
            self._say(f"{which}  started")
        elif cell.state is CellState.SUCCEEDED:
            self._say(f"{which}  done  {self._numbers(cell)}{self._leader(cells)}")
        elif cell.state is CellState.PRUNED:
            self._say(f"{which}  ended early  {self._numbers(cell)}")
        else:
            self._say(f"{which}  {cell.state.lower()}  {cell.error or ''}".rstrip())

    def _leader(self, cells: Sequence[Cell]) -> str:
        best = self._best(cells).get("best")
        return f"  (best so far {best['mean']:.4f} at {label(best['point'])})" if best else ""

    def _numbers(self, cell: Cell) -> str:
        judged = [name for name in cell.metrics if name.startswith(("val/", "test/"))]
        names = sorted(judged, key=lambda name: (name != self._metric, name))[:LINE_METRICS]
        return "  ".join(f"{name} {cell.metrics[name]:.4f}" for name in names)

    def _work(self) -> None:
        while not self._over.wait(PERIOD_S):
            self.look()
