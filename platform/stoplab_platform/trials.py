"""A study's cells as a table: chosen, sorted, and written as CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stoplab_platform.ledger import Cell, CellState

HEAD = ("cell", "arm", "seed", "state")
LEG = ("generation", "member", "parent")  # of a population's cells
TAIL = ("mlflow_run_id", "started_at", "finished_at", "error")
FIELDS: dict[str, Callable[[Cell], Any]] = {
    "index": lambda cell: cell.index,
    "seed": lambda cell: cell.seed,
    "state": lambda cell: cell.state,
    "arm": lambda cell: cell.arm or "",
}
"""What trials can be sorted by, beside any metric and any swept field."""


@dataclass(frozen=True)
class Choice:
    """Which cells are wanted: all that is given must hold, lists mean any of them."""

    states: Sequence[CellState] = ()
    arms: Sequence[str] = ()
    seeds: Sequence[int] = ()
    point: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Swept field to values as words: `0.25`, `learned`, `[0.15, 0.2]`."""
    least: Mapping[str, float] = field(default_factory=dict)
    """Metric to the smallest value that is wanted."""
    most: Mapping[str, float] = field(default_factory=dict)
    """Metric to the largest value that is wanted."""

    def takes(self, cell: Cell) -> bool:
        """Whether the cell is wanted; one without a bounded metric is not."""
        listed: tuple[tuple[Sequence[Any], Any], ...] = (
            (self.states, cell.state),
            (self.arms, cell.arm),
            (self.seeds, cell.seed),
        )
        nan = float("nan")
        return (
            all(not wanted or value in wanted for wanted, value in listed)
            and all(_is_one_of(cell.point, name, words) for name, words in self.point.items())
            and all(cell.metrics.get(name, nan) >= bound for name, bound in self.least.items())
            and all(cell.metrics.get(name, nan) <= bound for name, bound in self.most.items())
        )


def in_order(cells: Sequence[Cell], sort: str) -> list[Cell]:
    """By a field, a swept field or a metric; `-` before it turns the order round.

    Cells without it come last either way. ValueError for what is no field of theirs; a metric
    (`split/name`) may still come.
    """
    name, descending = sort.removeprefix("-"), sort.startswith("-")
    if name in FIELDS:
        return sorted(cells, key=FIELDS[name], reverse=descending)
    known = [cell for cell in cells if _key(cell, name) is not None]
    if cells and not known and "/" not in name:
        there = sorted({path for cell in cells for path in cell.point})
        raise ValueError(f"{name!r} is none of {[*FIELDS, *there]}, nor a metric as val/knn_top1")
    rest = [cell for cell in cells if _key(cell, name) is None]
    return sorted(known, key=lambda cell: _key(cell, name) or (), reverse=descending) + rest


def rows(cells: Sequence[Cell]) -> tuple[list[str], list[list[Any]]]:
    """Head and body: a row a cell, a column for each swept field and metric.

    A swept `seed` has no column of its own: the cell's seed is the replicate's. Where unlike
    versions of the protocols judged, a column tells which: such metrics are not comparable.
    """
    fields = sorted({name for cell in cells for name in cell.point} - set(HEAD))
    legs = LEG if any(cell.generation is not None for cell in cells) else ()
    metrics = sorted({name for cell in cells for name in cell.metrics})
    judges = {c.certificate.get("protocols") for c in cells if c.state is CellState.SUCCEEDED}
    apart = ("protocols",) if len(judges) > 1 else ()
    body = [
        [cell.id, cell.arm, cell.seed, cell.state.value, *(getattr(cell, name) for name in legs),
         *(cell.point.get(name) for name in fields), *(cell.metrics.get(name) for name in metrics),
         *(cell.certificate.get(name) for name in apart),
         cell.mlflow_run_id, cell.started_at, cell.finished_at, cell.error]
        for cell in cells
    ]  # fmt: skip
    return [*HEAD, *legs, *fields, *metrics, *apart, *TAIL], body


def as_csv(cells: Sequence[Cell]) -> str:
    """The table as CSV (RFC 4180, but for bare newlines); nothing is an empty field."""
    head, body = rows(cells)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([[_word(value) for value in row] for row in body])
    return out.getvalue()


def as_parquet(cells: Sequence[Cell]) -> bytes:
    """The table as Parquet: numbers are numbers, times are times, other values are JSON."""
    # It takes a tenth of a second to import, and the server seldom needs it.
    import pyarrow
    from pyarrow import parquet

    head, body = rows(cells)
    columns = {name: [row[place] for row in body] for place, name in enumerate(head)}
    made = {name: pyarrow.array(_alike(values)) for name, values in columns.items()}
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(made), sink)
    found: bytes = sink.getvalue().to_pybytes()
    return found


def _is_one_of(point: Mapping[str, Any], name: str, words: Sequence[str]) -> bool:
    return name in point and any(_same(point[name], word) for word in words)


def _same(value: Any, word: str) -> bool:
    """Whether a word of a query names this value."""
    if isinstance(value, str):
        return value == word
    try:
        return bool(value == json.loads(word))
    except ValueError:
        return False


def _key(cell: Cell, name: str) -> tuple[int, Any] | None:
    """What a cell is sorted by: numbers before words."""
    value = cell.metrics.get(name, cell.point.get(name))
    if value is None:
        return None
    return (0, value) if isinstance(value, int | float) else (1, json.dumps(value))


def _word(value: Any) -> Any:
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return json.dumps(value) if isinstance(value, list | dict) else value


def _alike(values: Sequence[Any]) -> list[Any]:
    """Values of one type, or all of them as words."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float}:
        return [None if v is None else float(v) if float in kinds else v for v in values]
    if len(kinds) == 1 and not kinds & {list, dict}:
        return list(values)
    return [v if v is None or isinstance(v, str) else json.dumps(v, default=str) for v in values]
