"""Where a comparison's runs come from, as far as it bears on what they prove.

Seeds that were added after a look, runs by which a sweep had chosen the very arm that is judged,
blocks from unlike machines: none of this is an error, all of it belongs beside the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stoplab_platform.files import read_json
from stoplab_platform.ledger import Cell, CellState
from stoplab_platform.masks import effective_ratio
from stoplab_platform.paths import JobFolder
from stoplab_platform.specs import ComparisonSpec, RunSpec
from stoplab_platform.specs.sweep import MASKING_RATIO
from stoplab_sweeps.cells import FACTS
from stoplab_sweeps.certificate import SHORT

SAME_RATIO = 0.005  # masked fractions that are nearer are the same setting


def notes(spec: ComparisonSpec, folder: JobFolder, cells: Sequence[Cell]) -> list[str]:
    """A sentence for each thing that a reader should know."""
    done = [cell for cell in cells if cell.state is CellState.SUCCEEDED]
    return [*_added(spec, folder, done), *_chosen(spec, folder, done), *_unlike(done)]


def _added(spec: ComparisonSpec, folder: JobFolder, done: Sequence[Cell]) -> Iterator[str]:
    """Seeds that joined after somebody could see how the first ones had come out."""
    source = (read_json(folder.origin) or {}).get("extends")
    fresh = {cell.seed for cell in done if not cell.adopted}
    seen = {cell.seed for cell in done if cell.adopted} - fresh
    if source is None or not seen or not fresh or spec.primary.looks is not None:
        return
    yield (
        f"{len(fresh)} seeds were added to the {len(seen)} of {source} without planned looks "
        f"(primary.looks): who adds seeds until a verdict comes errs more often than "
        f"{spec.primary.alpha:g}"
    )


def _chosen(spec: ComparisonSpec, folder: JobFolder, done: Sequence[Cell]) -> Iterator[str]:
    """Arms whose very runs, or whose settings on these seeds, a sweep of this lab chose among."""
    arms = {cell.run_digest: str(cell.arm) for cell in done if cell.run_digest is not None}
    for sweep, tried in _sweeps(folder.root.parent, {cell.seed for cell in done}).items():
        if len({cell.id.rpartition("-s")[0] for cell in tried}) < 2:
            continue  # nothing to choose from
        reused = {c.run_digest for c in tried if c.run_digest is not None} & arms.keys()
        if reused:
            names = ", ".join(sorted({arms[digest] for digest in reused}))
            yield (
                f"{len(reused)} runs of {names} are runs of the sweep {sweep} too: a point that "
                "was chosen by them had luck with these seeds; judge it on fresh ones"
            )
        others = {arm: spec.arm(arm, spec.seeds[0]) for arm in spec.arms} if not reused else {}
        for arm, run in others.items():
            if seeds := sorted({cell.seed for cell in tried if _has_point(run, cell.point)}):
                yield (
                    f"the sweep {sweep} has tried the settings of {arm} on seeds "
                    f"{', '.join(map(str, seeds))} too: a point that was chosen there had luck "
                    "with these seeds; judge it on fresh ones"
                )


def _sweeps(jobs: Path, seeds: set[int]) -> Mapping[str, list[Cell]]:
    """The sweeps of a lab to their finished cells on these seeds."""
    found: dict[str, list[Cell]] = {}
    for seed in sorted(seeds):
        for path in sorted(jobs.glob(f"*/cells/p-*-s{seed}.json")):
            cell = Cell.model_validate(read_json(path) or {})
            if cell.state is CellState.SUCCEEDED:
                found.setdefault(path.parent.parent.name, []).append(cell)
    return found


def _has_point(run: RunSpec, point: Mapping[str, Any]) -> bool:
    """Whether a run has every value of a sweep's point."""
    plain = run.plain()
    return bool(point) and all(
        math.isclose(effective_ratio(run.masking, run.grid), value, abs_tol=SAME_RATIO)
        if path == MASKING_RATIO
        else _at(plain, path) == value
        for path, value in sorted(point.items(), key=lambda axis: axis[0] == MASKING_RATIO)
    )


def _at(plain: Any, path: str) -> Any:
    for part in path.split("."):
        plain = plain.get(part) if isinstance(plain, Mapping) else None
    return plain


def _unlike(done: Sequence[Cell]) -> Iterator[str]:
    """Facts in which blocks differ from one another; inside a block the certificate checks them."""
    for fact in FACTS:
        seeds: dict[str, list[str]] = {}
        for cell in sorted(done, key=lambda cell: cell.seed):
            if (value := cell.certificate.get(fact)) is not None:
                seeds.setdefault(value, []).append(str(cell.seed))
        if len(seeds) > 1:
            each = "; ".join(
                f"{value[:SHORT]} in {', '.join(dict.fromkeys(of))}" for value, of in seeds.items()
            )
            yield f"the blocks differ in their {fact} (seeds: {each}), so they are no replicates"
