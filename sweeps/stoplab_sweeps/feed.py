"""Which cell runs next, decided anew each time one may start.

What it goes by may change while a study runs: the ledger, the stop file, the limits, and in an
adaptive search the results.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from enum import Enum, auto

from stoplab_platform.ledger import DONE, Cell, CellState, Ledger
from stoplab_platform.paths import JobFolder
from stoplab_platform.specs import ComparisonSpec
from stoplab_platform.specs.sweep import LimitsSpec
from stoplab_sweeps.cells import StudySpec, unfinished
from stoplab_sweeps.limits import current_limits, full, spent

Propose = Callable[[Sequence[Cell]], list[Cell]]
"""The ledger's cells to those of a new point or generation; none where there is none, or none
before something that runs has ended."""

LOOK_S = 1.0  # between two looks at the ledger while a limit holds things up


def lost(spec: StudySpec) -> str:
    """Why a cell failed that has no process any more."""
    most = spec.base.compute.max_failures
    return f"its process died more often than {most} times (compute.max_failures)"


class Say(Enum):
    """Why there is no cell."""

    WAIT = auto()
    """Not now: as many run as may, or a limit is reached that could still be raised."""
    OVER = auto()
    """None will come any more."""


class Feed:
    """Gives each unfinished cell once a start.

    A limit or the end of the budget splits no block of a comparison: no new block begins, the
    other arms of a begun one do.
    """

    def __init__(self, spec: StudySpec, folder: JobFolder, propose: Propose | None = None) -> None:
        self._spec, self._folder, self._ledger = spec, folder, Ledger(folder)
        self._propose = propose
        self._given: set[str] = set()
        self._running: set[str] = set()
        self._look_at = float("-inf")

    def next(self) -> Cell | Say:
        """The next cell, which counts as running from here on."""
        if self._folder.stop.exists():
            return Say.OVER
        limits = current_limits(self._spec.limits, self._folder)
        at_once = limits.max_concurrent
        if at_once is not None and len(self._running) >= at_once:
            return Say.WAIT
        if time.monotonic() < self._look_at:
            return Say.WAIT
        cells = self._cells()
        left = self._left(cells)
        if left:
            allowed = self._allowed(left, cells, limits)
            return self._give(allowed[0]) if allowed else self._held_up()
        if self._propose is None:
            return Say.OVER
        if self.reached(cells) is not None:
            return self._held_up()
        return self._give_new(cells, self._propose)

    def ended(self, cell_id: str) -> None:
        """A cell that was given no longer runs; one whose process could not say why has failed."""
        self._running.discard(cell_id)
        running = self._ledger.get(cell_id).state is CellState.RUNNING
        if running and not self._folder.stop.exists():
            self._ledger.update(cell_id, state=CellState.FAILED, error=lost(self._spec))
        self._look_at = float("-inf")

    def remaining(self) -> int:
        """Cells that are planned and wait for their turn."""
        return len(self._left(self._ledger.cells()))

    def more(self, cells: Sequence[Cell]) -> int:
        """Cells of the next point that an adaptive search would draw; 0: no further point."""
        return 0 if self._propose is None else len(self._propose(cells))

    def reached(self, cells: Sequence[Cell]) -> str | None:
        """Which limit keeps a new cell from starting, in words."""
        limits = current_limits(self._spec.limits, self._folder)
        return spent(limits, self._spec.base.compute, cells) or full(limits, cells)

    def _cells(self) -> list[Cell]:
        """The ledger, where a cell that was just given counts as running before it says so."""
        running = {"state": CellState.RUNNING}
        return [
            cell.model_copy(update=running) if cell.id in self._running else cell
            for cell in self._ledger.cells()
        ]

    def _left(self, cells: Sequence[Cell]) -> list[Cell]:
        return [cell for cell in unfinished(cells) if cell.id not in self._given]

    def _allowed(
        self, left: Sequence[Cell], cells: Sequence[Cell], limits: LimitsSpec
    ) -> list[Cell]:
        late, many = spent(limits, self._spec.base.compute, cells), full(limits, cells)
        if late is None and many is None:
            return list(left)
        if isinstance(self._spec, ComparisonSpec):
            begun = {c.seed for c in cells if c.started_at is not None or c.id in self._given}
            return [cell for cell in left if cell.seed in begun]
        return [cell for cell in left if late is None and cell.started_at is not None]

    def _held_up(self) -> Say:
        if not self._running:
            return Say.OVER
        self._look_at = time.monotonic() + LOOK_S
        return Say.WAIT

    def _give_new(self, cells: Sequence[Cell], propose: Propose) -> Cell | Say:
        """The first cell of a new point; points that cannot run are written down, and passed."""
        while fresh := propose(cells):
            self._ledger.plan(fresh)
            if fresh[0].state not in DONE:
                return self._give(fresh[0])
            cells = self._cells()
        if not self._running:
            return Say.OVER
        self._look_at = math.inf  # until something has ended, the answer stays the same
        return Say.WAIT

    def _give(self, cell: Cell) -> Cell:
        self._given.add(cell.id)
        self._running.add(cell.id)
        return cell
