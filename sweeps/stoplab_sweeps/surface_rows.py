"""A sweep's cells as rows of its response surface, and what its axes matter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from stoplab_platform.ledger import Cell, CellState
from stoplab_platform.masks import effective_ratio
from stoplab_platform.specs import RunSpec, SweepSpec
from stoplab_platform.specs.baselines import baseline
from stoplab_platform.specs.run import ComputeSpec
from stoplab_platform.specs.sweep import MASKING_RATIO
from stoplab_sweeps.cells import judged_alike
from stoplab_sweeps.importance import importance
from stoplab_sweeps.space import run_at
from stoplab_sweeps.surface import surface
from stoplab_sweeps.surface_points import Row

ON_SURFACE = ("positions.kind", "positions.noise_std", MASKING_RATIO, "seed")
"""Axes that the surface itself shows."""
MOVES_RATIO = (
    "masking.ratio", "masking.target.scale", "masking.target.count",
    "masking.context.scale", "masking.context.count",
)  # fmt: skip
"""Fields that it shows as the masked fraction they lead to, where `masking_ratio` is no axis."""
BASELINES = ("ijepa", "stop_sigma0", "official_off")
"""What can stand at noise 0, the first choice first."""


def surface_of(spec: SweepSpec, cells: Sequence[Cell]) -> dict[str, Any]:
    """The surface of the runs that succeeded, with the importance of every axis.

    Where other fields vary too, it is the slice at their best setting (`slice`). Runs that were
    pruned trained for less than the rest, and are left out (`left_out`), as are those that other
    versions of the protocols judged. A population has no
    surface: its runs changed their points on the way. `baseline` names what stands at noise 0.
    """
    metric, mode = spec.objective.metric, spec.objective.mode
    changed = spec.scheduler.kind == "pbt"
    done = (
        []
        if changed
        else [
            cell
            for cell in judged_alike(cells)
            if cell.state is CellState.SUCCEEDED and metric in cell.metrics
        ]
    )
    setting, chosen = _best_slice(done, metric, mode)
    fractions: dict[str, float] = {}
    runs = [run_at(spec, cell.point, seed=cell.seed, name=spec.name) for cell in chosen]
    rows = [_row(r, cell, metric, fractions) for r, cell in zip(runs, chosen, strict=True)]
    still, rows = _one_baseline(rows, [baseline(run) for run in runs])
    unit = "GPU-hours" if spec.base.compute.gpus_per_worker else "CPU-hours"
    found = surface(rows, metric=metric, mode=mode, hours_unit=unit)
    if changed:
        found["reason"] = "the runs of a population change their points on the way"
    return found | {
        "slice": setting,
        "baseline": still,
        "left_out": len(cells) - len({(row.noise_std, row.ratio, row.seed) for row in rows}),
        "importance": importance([(cell.point, cell.metrics[metric]) for cell in done]),
    }


def hours_of(cell: Cell, compute: ComputeSpec) -> float | None:
    """GPU-hours of a finished cell, CPU-hours where it has no GPU; None while it has no end."""
    if cell.finished_at is None:
        return None
    each = compute.gpus_per_worker or compute.cpus_per_worker
    return cell.ran_s / 3600 * float(each) * compute.workers


def _row(run: RunSpec, cell: Cell, metric: str, fractions: dict[str, float]) -> Row:
    key = run.masking.model_dump_json()
    if key not in fractions:  # simulated, so it takes a moment
        fractions[key] = effective_ratio(run.masking, run.grid)
    hours = hours_of(cell, run.compute)
    return Row(run.positions.noise_std, fractions[key], cell.seed, cell.metrics[metric], hours)


def _one_baseline(rows: Sequence[Row], names: Sequence[str | None]) -> tuple[str | None, list[Row]]:
    """Which baseline stands at noise 0; the rows without those of any other."""
    found = next((name for name in BASELINES if name in names), None)
    pairs = zip(rows, names, strict=True)
    return found, [row for row, name in pairs if name in (None, found)]


def _best_slice(
    cells: Sequence[Cell], metric: str, mode: str
) -> tuple[Mapping[str, Any], list[Cell]]:
    """The setting of the axes beside the surface with the best mean of any point."""
    slices: dict[str, list[Cell]] = {}
    for cell in cells:
        slices.setdefault(json.dumps(_beside(cell), sort_keys=True), []).append(cell)
    if not slices:
        return {}, []
    better = max if mode == "max" else min
    best = better(slices, key=lambda key: better(_means(slices[key], metric)))
    return json.loads(best), slices[best]


def _beside(cell: Cell) -> dict[str, Any]:
    """The point without what the surface shows."""
    shown = ON_SURFACE if MASKING_RATIO in cell.point else (*ON_SURFACE, *MOVES_RATIO)
    beside = {path: value for path, value in cell.point.items() if path not in shown}
    if isinstance(whole := beside.pop("positions", None), dict):
        rest = {f"positions.{key}": value for key, value in whole.items()}
        beside |= {path: value for path, value in rest.items() if path not in shown}
    return beside


def _means(cells: Sequence[Cell], metric: str) -> list[float]:
    groups: dict[str, list[float]] = {}
    for cell in cells:
        key = json.dumps(cell.point, sort_keys=True)
        groups.setdefault(key, []).append(cell.metrics[metric])
    return [fmean(values) for values in groups.values()]
