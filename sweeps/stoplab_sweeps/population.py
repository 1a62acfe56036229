"""Population-based training: the next generation as a function of the ledger alone.

A member's training is cut into legs of `interval_epochs`; each leg is a cell. When all legs of a
generation have ended, the members that are behind go on from the weights of one that is ahead, at
a point near its own; the others go on as they are (Jaderberg et al., 2017, arXiv:1711.09846,
algorithm 1). Unlike there, a generation waits for its last member: so a killed study goes on where
it was, and the same spec gives the same population.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stoplab_platform.ledger import Cell, CellState
from stoplab_platform.specs import SweepSpec
from stoplab_platform.specs.sweep import Axis
from stoplab_sweeps.cells import comparable, newest_generation, population_cell
from stoplab_sweeps.space import TRIES, Point, drawn, label

log = logging.getLogger("stoplab")

FACTORS = (0.8, 1.2)  # by which a number is moved (arXiv:1711.09846, section 4.1.1)


def next_generation(spec: SweepSpec, cells: Sequence[Cell]) -> list[Cell]:
    """The next leg of every member; none while this one runs, after the last, or if none is left.

    A member that failed, or could not run, counts as behind all others.
    """
    now = newest_generation(cells)
    assert now, "the first generation is planned"
    generation = _generation(now[0]) + 1
    running = any(c.state in {CellState.PENDING, CellState.RUNNING, CellState.STOPPED} for c in now)
    alive = _ranked(spec, now)
    if running or not alive or generation >= spec.generations():
        return []
    few = min(math.ceil(len(now) * spec.scheduler.quantile), len(alive) // 2)
    ahead = alive[: max(few, 1)]
    dead = len(now) - len(alive)
    going_on = {cell.id for cell in alive[: len(alive) - max(0, few - dead)]}
    return [_leg(spec, cell, ahead, generation, cell.id not in going_on) for cell in now]


def lineage(cells: Sequence[Cell], last: Cell) -> list[Cell]:
    """The legs that led to this one, the first one first."""
    known = {cell.id: cell for cell in cells}
    legs = [last]
    while (parent := legs[0].parent) is not None:
        legs.insert(0, known[parent])
    return legs


def schedule(spec: SweepSpec, cells: Sequence[Cell]) -> str:
    """What the best member trained with, leg by leg, in words."""
    best = _ranked(spec, comparable(cells))[0]
    every, epochs = spec.scheduler.interval_epochs, spec.base.optim.epochs
    return "\n".join(
        f"epochs {g * every}-{min((g + 1) * every, epochs)}: {label(leg.point)}  ({leg.id})"
        for g, leg in enumerate(lineage(cells, best))
    )


def interrupted(spec: SweepSpec, cells: Sequence[Cell]) -> list[Cell]:
    """The whole newest generation once more; none of it is lost where a start died planning it."""
    now = newest_generation(cells)
    if not now or now[0].generation == 0:
        return []
    return next_generation(spec, [cell for cell in cells if cell not in now])


def _leg(
    spec: SweepSpec, cell: Cell, ahead: Sequence[Cell], generation: int, replaced: bool
) -> Cell:
    assert cell.member is not None
    if not replaced:
        return population_cell(spec, cell.point, generation, cell.member, parent=cell.id)
    rng = np.random.default_rng([spec.search.seed, generation, cell.member])
    donor = ahead[int(rng.integers(len(ahead)))]
    for _ in range(TRIES):
        point = explored(spec, donor.point, rng)
        made = population_cell(spec, point, generation, cell.member, parent=donor.id)
        if made.state is not CellState.INFEASIBLE:
            return made
    return population_cell(spec, donor.point, generation, cell.member, parent=donor.id)


def explored(spec: SweepSpec, point: Mapping[str, Any], rng: np.random.Generator) -> Point:
    """A point near another one: each axis is drawn anew now and then, moved a little otherwise."""
    return {
        path: drawn(axis, rng.random())
        if rng.random() < spec.scheduler.resample
        else moved(axis, point[path], bool(rng.integers(2)))
        for path, axis in spec.space.items()
    }


def moved(axis: Axis, value: Any, up: bool) -> Any:
    """A number times 1.2 or 0.8, inside its range; of a list, the value beside it."""
    bounds = axis.uniform or axis.loguniform or axis.int_
    if bounds is None:
        values = axis.examples()
        place = values.index(value) + (1 if up else -1)
        return values[min(max(place, 0), len(values) - 1)]
    low, high = bounds
    fresh = min(max(value * FACTORS[up], low), high)
    if axis.int_ is None:
        return fresh
    step = round(fresh) if round(fresh) != value else value + (1 if up else -1)
    return min(max(step, low), high)


def _ranked(spec: SweepSpec, cells: Sequence[Cell]) -> list[Cell]:
    """Members that came to the end of their leg, the best one first."""
    metric, sign = spec.objective.metric, -1 if spec.objective.mode == "max" else 1
    ended = [c for c in cells if c.state is CellState.SUCCEEDED and metric in c.metrics]
    return sorted(ended, key=lambda cell: (sign * cell.metrics[metric], cell.member))


def _generation(cell: Cell) -> int:
    assert cell.generation is not None
    return cell.generation
