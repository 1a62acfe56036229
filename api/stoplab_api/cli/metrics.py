"""`stoplab jobs metrics`: last values, or series as a small table with a line of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any

import typer

from stoplab_api.cli.connecting import connect
from stoplab_api.cli.show import AsJson, JobId, print_json, print_table, reported
from stoplab_api.client import Client
from stoplab_api.findings import SeriesBody

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 24  # characters of a line


@reported
def metrics(
    job_id: JobId,
    names: Annotated[
        list[str] | None, typer.Option("--name", help="A metric's series; repeated: several.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(help="A run of a study: its id in `jobs trials`.")
    ] = None,
    points: Annotated[
        int, typer.Option(min=4, max=5000, help="Most points of a series, with --json.")
    ] = 500,
    as_json: AsJson = False,
) -> None:
    """Print the last value of each metric: of a run, or of each run of a study."""
    with connect() as client:
        if names:
            found = client.series(job_id, names, run=run, points=points)
            if as_json:
                print_json(found)
            else:
                _print_series(found.series)
            return
        if run is None and client.get(job_id).kind in ("sweep", "compare"):
            _print_runs(client, job_id, as_json)
            return
        last = {one.name: one.value for one in client.metrics(job_id, run=run).items}
    if as_json:
        print_json({"id": job_id, "metrics": last})
    else:
        print_table(("metric", "value"), sorted(last.items()))


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Values as blocks of eight heights, means where there are more of them than ``width``."""
    count = min(width, len(values))
    edges = [round(place * len(values) / count) for place in range(count + 1)] if count else []
    means = [sum(values[low:high]) / (high - low) for low, high in pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)


def _print_runs(client: Client, job_id: str, as_json: bool) -> None:
    found: dict[str, Any] = {trial.id: trial.metrics for trial in client.trials(job_id).items}
    if as_json:
        print_json({"id": job_id, "metrics": found})
        return
    names = sorted({name for values in found.values() for name in values})
    rows = [(run, *map(values.get, names)) for run, values in found.items()]
    print_table(("run", *names), rows)


def _print_series(series: Sequence[SeriesBody]) -> None:
    print_table(("metric", "last", "min", "max", "points", ""), [_row(one) for one in series])


def _row(one: SeriesBody) -> tuple[object, ...]:
    values = [point.value for point in one.points if point.value is not None]
    last = one.points[-1].value if one.points else None
    ends = (last, min(values, default=None), max(values, default=None))
    numbers = (None if value is None else f"{value:.4g}" for value in ends)
    return (one.name, *numbers, one.n_total, sparkline(values))
