"""Learning curves of a comparison's arms, averaged over the seeds, from the runs' spools."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from stoplab_platform.ledger import Cell, CellState
from stoplab_platform.paths import JobFolder

MOST_STEPS = 200  # of a curve; more are thinned out
SHOWN = ("train/loss",)  # and every scheduled evaluation on the validation split

Curve = dict[str, list[float]]
"""`step`, `mean`, `low`, `high` (one standard deviation of the seeds) of one arm."""


def learning_curves(folder: JobFolder, cells: Sequence[Cell]) -> dict[str, dict[str, Curve]]:
    """Metric to arm to its curve, at the steps that all of the arm's runs have.

    A metric with fewer than two steps is no curve.
    """
    runs: dict[str, list[dict[str, dict[int, float]]]] = {}
    for cell in cells:
        if cell.arm is not None and cell.state is CellState.SUCCEEDED:
            runs.setdefault(cell.arm, []).append(_metrics(folder.run(cell.id).spool))
    found: dict[str, dict[str, Curve]] = {}
    for arm, histories in runs.items():
        for name in sorted({name for history in histories for name in history}):
            curve = _curve([history.get(name, {}) for history in histories])
            if len(curve["step"]) > 1:
                found.setdefault(name, {})[arm] = curve
    return dict(sorted(found.items()))


def _metrics(spool: Path) -> dict[str, dict[int, float]]:
    """Metric to step to value."""
    found: dict[str, dict[int, float]] = {}
    for line in _lines(spool):
        if line.get("verb") != "metrics":
            continue
        for name, value in line["values"].items():
            if name in SHOWN or name.startswith("val/"):
                found.setdefault(name, {})[line["step"]] = value
    return found


def _lines(spool: Path) -> Iterator[dict[str, Any]]:
    """Whole lines; a last one that was cut off by a kill is left out."""
    if not spool.exists():
        return
    with spool.open() as file:
        yield from (json.loads(line) for line in file if line.endswith("\n"))


def _curve(histories: Sequence[dict[int, float]]) -> Curve:
    steps = sorted(set.intersection(*(set(history) for history in histories)))
    thin = -(-len(steps) // MOST_STEPS) or 1
    steps = steps[::-1][::thin][::-1]  # the last one stays
    rows = [[history[step] for history in histories] for step in steps]
    means = [fmean(row) for row in rows]
    spreads = [stdev(row) if len(row) > 1 else 0.0 for row in rows]
    return {
        "step": [float(step) for step in steps],
        "mean": means,
        "low": [m - s for m, s in zip(means, spreads, strict=True)],
        "high": [m + s for m, s in zip(means, spreads, strict=True)],
    }
