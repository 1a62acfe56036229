"""What a study leaves at the end of a start: files, a table on the console, numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stoplab_platform.files import write_atomic, write_json
from stoplab_platform.ledger import Cell, CellState
from stoplab_platform.paths import JobFolder
from stoplab_platform.specs import ComparisonSpec, SweepSpec
from stoplab_platform.trials import as_csv, as_parquet
from stoplab_sweeps.best import best_of, sentence
from stoplab_sweeps.cells import StudySpec
from stoplab_sweeps.compare import result
from stoplab_sweeps.per_image import read_right
from stoplab_sweeps.population import schedule
from stoplab_sweeps.provenance import notes
from stoplab_sweeps.report import (
    comparison_markdown,
    comparison_table,
    failures,
    judged_apart,
    sweep_table,
)


@dataclass(frozen=True)
class Outcome:
    """What the study's own run in the tracker gets."""

    metrics: Mapping[str, float]
    files: Sequence[Path]
    refused: bool = False
    """The runs were no pairs, so there is no verdict."""


def sum_up(spec: StudySpec, folder: JobFolder, cells: Sequence[Cell]) -> Outcome:
    """Write the result of the cells that are there, complete or not, and print it."""
    tables = _tables(folder, cells)
    if bad := failures(cells):
        print(f"\n{bad}", flush=True)
    if not any(cell.state is CellState.SUCCEEDED for cell in cells):
        return Outcome({}, tables)
    if isinstance(spec, ComparisonSpec):
        return _compared(spec, folder, cells, tables)
    return _swept(spec, folder, cells, tables)


def _tables(folder: JobFolder, cells: Sequence[Cell]) -> list[Path]:
    write_atomic(folder.trials, as_csv(cells))
    draft = folder.trials_parquet.with_name(f".{folder.trials_parquet.name}")
    draft.write_bytes(as_parquet(cells))
    draft.replace(folder.trials_parquet)
    return [folder.trials, folder.trials_parquet]


def _swept(
    spec: SweepSpec, folder: JobFolder, cells: Sequence[Cell], tables: Sequence[Path]
) -> Outcome:
    print(f"\n{sweep_table(spec, cells)}\n", flush=True)
    if apart := judged_apart(cells):
        print(f"{apart}\n", flush=True)
    found = best_of(spec, cells)
    if found is not None:
        population = spec.scheduler.kind == "pbt"
        advice = "train it anew, on fresh seeds" if population else "raise replicates"
        print(f"{sentence(found, advice)}\n", flush=True)
        if population:
            print(f"{schedule(spec, cells)}\n", flush=True)
    metrics = {} if found is None else {f"best/{found.metric}": found.best.mean}
    pictures: list[Path] = []
    if not folder.stop.exists():
        from stoplab_sweeps.pictures import surface_files

        pictures = surface_files(spec, folder, cells)
    return Outcome(metrics, [*tables, *pictures])


def _compared(
    spec: ComparisonSpec, folder: JobFolder, cells: Sequence[Cell], tables: Sequence[Path]
) -> Outcome:
    told = read_right(folder, cells, spec.primary.metric)
    judged = result(spec, cells, told=told, notes=notes(spec, folder, cells))
    write_json(folder.comparison, judged)
    write_atomic(folder.comparison_page, comparison_markdown(spec, judged))
    print(f"\n{comparison_table(judged)}\n", flush=True)
    pictures: list[Path] = []
    if not folder.stop.exists():
        # They take seconds to import and to draw, which a study that was stopped does not have.
        from stoplab_sweeps.pictures import comparison_files

        pictures = comparison_files(spec, folder, cells, judged)
    return Outcome(
        _numbers(judged),
        [folder.comparison, folder.comparison_page, *tables, *pictures],
        refused=judged["verdict"] == "refused",
    )


def _numbers(judged: Mapping[str, Any]) -> dict[str, float]:
    low, high = judged["ci95"] or (None, None)
    found = {
        "compare/delta": judged["delta"],
        "compare/ci95_low": low,
        "compare/ci95_high": high,
        "compare/p_t": judged["p_t"],
        "compare/n_blocks": judged["n_blocks"],
        **{f"compare/mean/{arm}": row["mean"] for arm, row in judged["arms"].items()},
    }
    return {name: float(value) for name, value in found.items() if value is not None}
