"""Where a comparison's runs come from, as far as it bears on what they prove.

Seeds that were added after a look, runs by which a sweep had chosen the very arm that is judged,
blocks from unlike machines: none of this is an error, all of it belongs beside the verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from stoplab_platform.ledger import Cell, CellState
from stoplab_platform.paths import JobFolder, read_json
from stoplab_platform.specs import ComparisonSpec
from stoplab_sweeps.cells import FACTS
from stoplab_sweeps.certificate import SHORT


def notes(spec: ComparisonSpec, folder: JobFolder, cells: Sequence[Cell]) -> list[str]:
    """A sentence for each thing that a reader should know."""
    done = [cell for cell in cells if cell.state is CellState.SUCCEEDED]
    return [*_added(spec, folder, done), *_chosen(folder, done), *_unlike(done)]


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


def _chosen(folder: JobFolder, done: Sequence[Cell]) -> Iterator[str]:
    """Arms that are the very runs among which a sweep of this lab has chosen its best point."""
    arms = {cell.run_digest: str(cell.arm) for cell in done if cell.run_digest is not None}
    for sweep, runs in _sweeps(folder.root.parent, {cell.seed for cell in done}).items():
        reused = {digest for _, digest in runs} & arms.keys()
        if reused and len({point for point, _ in runs}) > 1:
            names = ", ".join(sorted({arms[digest] for digest in reused}))
            yield (
                f"{len(reused)} runs of {names} are runs of the sweep {sweep} too: a point that "
                "was chosen by them had luck with these seeds; judge it on fresh ones"
            )


def _sweeps(jobs: Path, seeds: set[int]) -> Mapping[str, set[tuple[str, str]]]:
    """The sweeps of a lab to (point, run digest) of their runs on these seeds."""
    found: dict[str, set[tuple[str, str]]] = {}
    for seed in sorted(seeds):
        for path in sorted(jobs.glob(f"*/cells/p-*-s{seed}.json")):
            digest = (read_json(path) or {}).get("run_digest")
            if digest is not None:
                point = path.stem.rpartition("-s")[0]
                found.setdefault(path.parent.parent.name, set()).add((point, digest))
    return found


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
