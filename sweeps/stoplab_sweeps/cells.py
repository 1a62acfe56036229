"""Cells: what a study consists of, and one of them being run, wherever that happens."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stoplab_platform.errors import Fenced, Problem, SpecError, StoplabError, Stopped
from stoplab_platform.files import read_json, read_lines
from stoplab_platform.ledger import DONE, Cell, CellState, Ledger
from stoplab_platform.paths import JobFolder, RunFolder
from stoplab_platform.redaction import scrubbed
from stoplab_platform.specs import ComparisonSpec, RunSpec, SweepSpec
from stoplab_platform.tracking import RunIdentity
from stoplab_sweeps.sequential import levels
from stoplab_sweeps.space import Infeasible, Point, label, point_id, points, run_at, seed_of
from stoplab_trainers.notice import PREEMPTED, own_node_drains

if TYPE_CHECKING:  # the driver needs no torch, and starts seconds earlier without it
    from stoplab_trainers.hooks import OnScores
    from stoplab_trainers.resuming import Leg
    from stoplab_trainers.summary import Summary

StudySpec = SweepSpec | ComparisonSpec
Execute = Callable[..., "Summary"]
"""What `stoplab_trainers.launch.execute` is: spec, folder, identity, stop_file to summary."""

PROTOCOLS = "protocols"  # the fact that tells by which versions a run was judged
JUDGED = "judged"  # the fact that tells by which images and protocols, options included
FACTS = ("precision", "threads", "device", "data", JUDGED, PROTOCOLS, "init_from")
"""What a pairing also rests on."""
PRUNED = "PRUNED"  # a stop's intent, where a scheduler ended the run
NAME_ROOM = 90  # characters of a study's name in its runs' names


class Leaving(StoplabError):
    """The process of a cell has to go; the cell is saved, and goes on in another one."""


@dataclass(frozen=True)
class Start:
    """One start of a study: whose, where, and the how-manyeth."""

    job_id: str
    folder: JobFolder
    attempt: int
    tracking_uri: str


def plan(spec: StudySpec) -> list[Cell]:
    """Every cell that is known beforehand, in the order of the study; INFEASIBLE ones marked.

    Seed by seed, all arms or points of one seed first: so blocks are complete as early as can
    be. An adaptive search plans as it goes (`search.propose`). SpecError where nothing could run.
    """
    found = _arms(spec) if isinstance(spec, ComparisonSpec) else _points(spec)
    if found and all(cell.state is CellState.INFEASIBLE for cell in found):
        reasons = dict.fromkeys(str(cell.error) for cell in found)
        raise SpecError([Problem(("space",), f"no point can run: {'; '.join(reasons)}")])
    return found


def expected(spec: StudySpec) -> int | None:
    """How many runs an adaptive search is after; None where the plan knows."""
    if not isinstance(spec, SweepSpec):
        return None
    if spec.scheduler.kind == "pbt":
        return len(points(spec)) * spec.generations()
    return spec.num_runs() if spec.search.kind == "optuna" else None


def cells_at(spec: SweepSpec, point: Point, index: int) -> list[Cell]:
    """The cells of one point from a place in the order on, INFEASIBLE where no run can be made."""
    return [
        _cell(spec, point, replicate, index + replicate) for replicate in range(spec.replicates)
    ]


def population_cell(
    spec: SweepSpec, point: Point, generation: int, member: int, parent: str | None = None
) -> Cell:
    """One leg of a member of a population, INFEASIBLE where no run can be made."""
    place = generation * len(points(spec)) + member
    leg = {"generation": generation, "member": member, "parent": parent}
    return _checked(
        spec,
        Cell(
            id=f"g{generation}-m{member}",
            index=place,
            point=point,
            seed=seed_of(spec, point, 0),
            **leg,
        ),
    )


def newest_generation(cells: Iterable[Cell]) -> list[Cell]:
    """Of a population the cells of its newest generation, member by member; else none."""
    legs = [cell for cell in cells if cell.generation is not None]
    newest = max((cell.generation or 0 for cell in legs), default=0)
    return [cell for cell in legs if cell.generation == newest]


def comparable(cells: Sequence[Cell]) -> list[Cell]:
    """Cells whose values can be held against each other: judged alike, of one generation.

    Of a population it is the newest whose legs have all ended, the first one before that.
    """
    cells = judged_alike(cells)
    if not (now := newest_generation(cells)) or now[0].generation == 0:
        return list(cells)
    ended = {CellState.SUCCEEDED, CellState.FAILED} | DONE
    if all(cell.state in ended for cell in now):
        return now
    return comparable([cell for cell in cells if cell not in now])


def judged_alike(cells: Sequence[Cell]) -> list[Cell]:
    """Cells without the finished ones that were judged by something else than the latest one.

    A study that went on after a protocol or the labelled images had changed holds scores that mean
    different things. Runs of releases that told nothing are one kind by themselves.
    """
    # Images are shown at the size that they are trained at: where that varies, so does `judged`.
    sizes = any("data.image_size".startswith(path) for cell in cells for path in cell.point)
    facts = (PROTOCOLS,) if sizes else (PROTOCOLS, JUDGED)

    def judge(cell: Cell) -> list[str | None]:
        return [cell.certificate.get(fact) for fact in facts]

    done = [cell for cell in cells if cell.state is CellState.SUCCEEDED]
    if not done or all(judge(cell) == judge(done[0]) for cell in done):
        return list(cells)
    latest = max(done, key=lambda c: c.finished_at.timestamp() if c.finished_at else 0.0)
    return [c for c in cells if c not in done or judge(c) == judge(latest)]


def unfinished(cells: Sequence[Cell]) -> list[Cell]:
    """What a start has to run: all that is not done, but for legs that a population went past."""
    now = {cell.id for cell in newest_generation(cells)}
    return [c for c in cells if c.state not in DONE and (c.generation is None or c.id in now)]


def known_points(spec: StudySpec, cells: Sequence[Cell]) -> list[Cell]:
    """The plan of an adaptive search so far: every point of the ledger with all its replicates.

    Some are missing where a start was killed while it planned, or replicates were raised.
    """
    if not isinstance(spec, SweepSpec):
        return []
    groups = enumerate(by_point(cells))
    return [
        cell for i, group in groups for cell in cells_at(spec, group[0].point, i * spec.replicates)
    ]


def by_point(cells: Iterable[Cell]) -> list[list[Cell]]:
    """A sweep's cells, point by point in the order of their first ones; a leg stands alone.

    Two members of a population may come to the same point from different weights.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        alone = cell.generation is not None
        groups.setdefault(cell.id if alone else point_id(cell.point), []).append(cell)
    return list(groups.values())


def run_of(spec: StudySpec, cell: Cell) -> RunSpec:
    """The run that a cell stands for; `space.Infeasible` where none can be made."""
    if isinstance(spec, ComparisonSpec):
        assert cell.arm is not None, cell
        return spec.arm(cell.arm, cell.seed)
    name = f"{spec.name[:NAME_ROOM]}-{cell.id}"
    return run_at(spec, cell.point, seed=cell.seed, name=name)


def name_of(cell: Cell) -> str:
    """A cell for people: `noise_std=0.25 ratio=0.6 s0`, `stochastic s2`; a leg has its id too."""
    leg = "" if cell.generation is None else f" {cell.id}"
    return f"{cell.arm or label(cell.point)} s{cell.seed}{leg}"


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
        tags={**tracking.tags, **_leg_tags(cell)},
    )


def run_cell(
    spec: StudySpec,
    cell_id: str,
    start: Start,
    execute: Execute,
    on_scores: OnScores | None = None,
) -> None:
    """Run a cell, or go on with it, and write how it ended into the ledger.

    Nothing is raised for a run that fails: only a lost process is worth another try. Raises
    `Leaving` where the node of this one is taken away.
    """
    folder = start.folder
    ledger, run = Ledger(folder), folder.run(cell_id)
    cell = ledger.get(cell_id)
    if folder.stop.exists() or cell.state in DONE:
        return
    ledger.update(cell_id, state=CellState.RUNNING, error=None, finished_at=None)
    told: dict[str, Any] = {} if on_scores is None else {"on_scores": on_scores}
    if cell.generation is not None:
        told["leg"] = _leg(spec, cell, folder)
    try:
        parent = (read_json(folder.tracked) or {}).get("run_id")
        identity = identity_of(spec, cell, job_id=start.job_id, attempt=start.attempt)
        identity = dataclasses.replace(identity, parent_run_id=parent)
        summary = execute(run_of(spec, cell), run, identity, stop_file=folder.stop, **told)
    except Stopped as stop:
        if stop.intent == PREEMPTED and not folder.stop.exists():
            if own_node_drains():
                raise Leaving(f"the node of {cell_id}'s process is taken away: {stop}") from None
            # Its workers' node goes, and the study does not: it waits for room elsewhere.
            return run_cell(spec, cell_id, start, execute, on_scores)
        ledger.update(cell_id, **_stopped(run, stop.intent))
    except Fenced:
        raise  # the ledger is a newer attempt's
    except Exception as error:  # the boundary between somebody's run and our study
        text = scrubbed(f"{type(error).__name__}: {error}")
        ledger.update(cell_id, state=CellState.FAILED, error=text)
    else:
        ledger.update(cell_id, state=CellState.SUCCEEDED, **_learned(summary))


def train(*arguments: Any, **named: Any) -> Summary:
    """`stoplab_trainers.launch.execute`, loaded where a cell runs."""
    from stoplab_trainers.launch import execute

    return execute(*arguments, **named)


def _arms(spec: ComparisonSpec) -> list[Cell]:
    keys = [(seed, arm) for seed in spec.seeds for arm in spec.arms]
    for arm in spec.arms:
        spec.arm(arm, spec.seeds[0])  # refused here rather than in the middle
    if spec.primary.looks:
        levels(spec.primary.looks, spec.primary.spending, spec.primary.alpha)  # so is a bad plan
    return [
        Cell(id=f"{arm}-s{seed}", index=index, arm=arm, seed=seed)
        for index, (seed, arm) in enumerate(keys)
    ]


def _points(spec: SweepSpec) -> list[Cell]:
    if spec.scheduler.kind == "pbt":
        return [population_cell(spec, point, 0, i) for i, point in enumerate(points(spec))]
    keys = [(k, point) for k in range(spec.replicates) for point in points(spec)]
    return [_cell(spec, point, k, index) for index, (k, point) in enumerate(keys)]


def _cell(spec: SweepSpec, point: Point, replicate: int, index: int) -> Cell:
    seed = seed_of(spec, point, replicate)
    return _checked(
        spec, Cell(id=f"p-{point_id(point)}-s{seed}", index=index, point=point, seed=seed)
    )


def _leg(spec: StudySpec, cell: Cell, folder: JobFolder) -> Leg:
    from stoplab_trainers.resuming import Leg

    assert isinstance(spec, SweepSpec)
    assert cell.generation is not None
    after = folder.run(cell.parent).root if cell.parent else None
    return Leg((cell.generation + 1) * spec.scheduler.interval_epochs, after)


def _checked(spec: SweepSpec, cell: Cell) -> Cell:
    try:
        run_of(spec, cell)
    except Infeasible as error:
        changes = {"state": CellState.INFEASIBLE, "error": str(error)}
        return cell.model_copy(update=changes)
    return cell


def _leg_tags(cell: Cell) -> dict[str, str]:
    """What the tracker groups the legs of a population by."""
    if cell.generation is None:
        return {}
    tags = {"stoplab.generation": str(cell.generation), "stoplab.member": str(cell.member)}
    return tags | ({"stoplab.parent_cell": cell.parent} if cell.parent else {})


def _stopped(run: RunFolder, intent: str) -> dict[str, Any]:
    if intent != PRUNED:
        return {"state": CellState.STOPPED}
    lines = read_lines(run.scores)
    last = lines[-1] if lines else {"values": {}, "epoch": None}
    return {
        "state": CellState.PRUNED,
        "metrics": last["values"],
        "pruned_epoch": last["epoch"],
    }


def _learned(summary: Summary) -> dict[str, Any]:
    facts = {key: str(summary.facts[key]) for key in FACTS if key in summary.facts}
    return {
        "run_digest": summary.run_digest,
        "mlflow_run_id": summary.mlflow_run_id,
        # JSON holds no NaN; a metric that is not finite is as good as missing.
        "metrics": {name: v for name, v in summary.metrics.items() if math.isfinite(v)},
        "certificate": {**summary.certificate, **facts},
    }
