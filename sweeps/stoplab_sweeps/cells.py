"""Cells: what a study consists of, and one of them being run, wherever that happens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from stoplab_platform.errors import Problem, SpecError, Stopped
from stoplab_platform.ledger import Cell, CellState, Ledger
from stoplab_platform.paths import JobFolder, read_json
from stoplab_platform.specs import ComparisonSpec, RunSpec, SweepSpec
from stoplab_platform.tracking import RunIdentity
from stoplab_sweeps.space import Infeasible, label, points, run_at, seed_of

if TYPE_CHECKING:  # the driver needs no torch, and starts seconds earlier without it
    from stoplab_trainers.rank import Summary

StudySpec = SweepSpec | ComparisonSpec
Execute = Callable[..., "Summary"]
"""What `stoplab_trainers.launch.execute` is: spec, folder, identity, stop_file to summary."""

FACTS = ("precision", "threads", "device", "data")  # that a pairing also rests on
NAME_ROOM = 100  # characters of a study's name in its runs' names


class Planned(NamedTuple):
    """A cell and its run; None where no masks can be drawn."""

    cell: Cell
    run: RunSpec | None


@dataclass(frozen=True)
class Task:
    """One cell as its worker needs it; plain data, so that it travels."""

    cell_id: str
    spec: Mapping[str, Any]
    identity: Mapping[str, Any]


def plan(spec: StudySpec) -> list[Planned]:
    """Every cell in the order of the study.

    Seed by seed, all arms or points of one seed first: so blocks are complete as early as can
    be. SpecError where nothing could run, or more would than the limits allow.
    """
    found = _arms(spec) if isinstance(spec, ComparisonSpec) else _points(spec)
    if len(found) > spec.limits.trials:
        text = f"{spec.limits.trials}: the study has {len(found)} runs; allow them or vary less"
        raise SpecError([Problem(("limits", "trials"), text)])
    if all(run is None for _, run in found):
        reasons = dict.fromkeys(str(cell.error) for cell, _ in found)
        raise SpecError([Problem(("space",), f"no point can run: {'; '.join(reasons)}")])
    return found


def name_of(cell: Cell) -> str:
    """A cell for people: `noise_std=0.25 ratio=0.6 s0`, `stochastic s2`."""
    return f"{cell.arm or label(cell.point)} s{cell.seed}"


def identity_of(spec: StudySpec, cell: Cell, *, job_id: str, attempt: int) -> RunIdentity:
    """What the cell's run is called in the tracker; the runs of a block share a pair_id."""
    tracking = spec.base.tracking
    return RunIdentity(
        job_id=job_id,
        kind=spec.base.kind,
        name=name_of(cell),
        experiment=tracking.experiment,
        arm=cell.arm,
        pair_id=f"{job_id}-s{cell.seed}",
        cell=cell.id,
        attempt=attempt,
        tags=tracking.tags,
    )


def run_cell(task: Task, folder: JobFolder, execute: Execute) -> None:
    """Run a cell, or go on with it, and write how it ended into the ledger.

    Nothing is raised for a run that fails: only a lost process is worth another try.
    """
    ledger, run = Ledger(folder), folder.run(task.cell_id)
    if folder.stop.exists() or ledger.get(task.cell_id).state is CellState.SUCCEEDED:
        return
    ledger.update(task.cell_id, state=CellState.RUNNING, error=None, finished_at=None)
    try:
        spec = RunSpec.model_validate(task.spec)
        parent = (read_json(folder.tracked) or {}).get("run_id")
        identity = RunIdentity(**{**task.identity, "parent_run_id": parent})
        summary = execute(spec, run, identity, stop_file=folder.stop)
    except Stopped:
        ledger.update(task.cell_id, state=CellState.STOPPED)
    except Exception as error:  # the boundary between somebody's run and our study
        text = f"{type(error).__name__}: {error}"
        ledger.update(task.cell_id, state=CellState.FAILED, error=text)
    else:
        ledger.update(task.cell_id, state=CellState.SUCCEEDED, **_learned(summary))


def train(*arguments: Any, **named: Any) -> Summary:
    """`stoplab_trainers.launch.execute`, loaded where a cell runs."""
    from stoplab_trainers.launch import execute

    return execute(*arguments, **named)


def _arms(spec: ComparisonSpec) -> list[Planned]:
    keys = [(seed, arm) for seed in spec.seeds for arm in spec.arms]
    return [
        Planned(Cell(id=f"{arm}-s{seed}", index=index, arm=arm, seed=seed), spec.arm(arm, seed))
        for index, (seed, arm) in enumerate(keys)
    ]


def _points(spec: SweepSpec) -> list[Planned]:
    found: list[Planned] = []
    for replicate in range(spec.replicates):
        for number, point in enumerate(points(spec)):
            seed = seed_of(spec, point, replicate)
            cell = Cell(id=f"p{number:03d}-s{seed}", index=len(found), point=point, seed=seed)
            try:
                name = f"{spec.name[:NAME_ROOM]}-{cell.id}"
                found.append(Planned(cell, run_at(spec, point, seed=seed, name=name)))
            except Infeasible as error:
                changes = {"state": CellState.INFEASIBLE, "error": str(error)}
                found.append(Planned(cell.model_copy(update=changes), None))
    return found


def _learned(summary: Summary) -> dict[str, Any]:
    facts = {key: str(summary.facts[key]) for key in FACTS if key in summary.facts}
    return {
        "run_digest": summary.run_digest,
        "mlflow_run_id": summary.mlflow_run_id,
        # JSON holds no NaN; a metric that is not finite is as good as missing.
        "metrics": {name: v for name, v in summary.metrics.items() if math.isfinite(v)},
        "certificate": {**summary.certificate, **facts},
    }
