"""`stoplab jobs trials`: the runs of a study as a table, once or as they come."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from stoplab_api.answers import TrialListBody
from stoplab_api.bodies import JobBody
from stoplab_api.cli.completing import cell_states
from stoplab_api.cli.connecting import connect
from stoplab_api.cli.show import AsJson, BadInput, JobId, errors, print_json, reported
from stoplab_api.cli.studies import best_line, print_trials, trials_table
from stoplab_api.cli.watching import exit_code, progress_line, watch
from stoplab_api.client import Client
from stoplab_platform.jobs.states import TERMINAL

POLL_S = 1.0
ROOM = 8  # lines of a terminal that are not the table's
FIRST = ("RUNNING", "FAILED", "SUCCEEDED", "PRUNED", "STOPPED", "PENDING", "INFEASIBLE")
"""Which runs a short terminal shows first."""


@reported
def trials(
    job_id: JobId,
    sort: Annotated[
        str, typer.Option(help="A field, metric or swept field; `-` before it: falling.")
    ] = "index",
    state: Annotated[
        list[str] | None,
        typer.Option(help="In this state; repeated: or.", autocompletion=cell_states),
    ] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Of this arm; repeated: or.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="With this seed; repeated: or.")] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD:VALUE", help="With this value of a swept field."),
    ] = None,
    least: Annotated[
        list[str] | None,
        typer.Option("--min", metavar="METRIC:VALUE", help="With at least so much of a metric."),
    ] = None,
    most: Annotated[
        list[str] | None,
        typer.Option("--max", metavar="METRIC:VALUE", help="With at most so much of a metric."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--watch", help="Show them as they come, until the job ends.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    parquet: Annotated[Path | None, typer.Option(help="Write them to this Parquet file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the runs of a sweep or comparison."""
    if as_csv + as_json + (parquet is not None) > 1:
        raise BadInput("give one of --csv, --json and --parquet")
    wanted: dict[str, Any] = {
        "states": [word.upper() for word in state or ()],
        "arms": arm or (),
        "seeds": seed or (),
        "point": point or (),
        "least": least or (),
        "most": most or (),
        "sort": sort,
    }
    with connect() as client:
        ended = _followed(client, job_id, wanted) if follow else None
        if as_csv:
            typer.echo(client.trial_table(job_id, "csv", **wanted).decode(), nl=False)
        elif parquet is not None:
            parquet.write_bytes(client.trial_table(job_id, "parquet", **wanted))
        elif as_json:
            print_json(client.trials(job_id, **wanted))
        else:
            print_trials(client.trials(job_id, **wanted))
    if ended is not None:
        raise typer.Exit(exit_code(ended))


def _followed(client: Client, job_id: str, wanted: dict[str, Any]) -> JobBody:
    """The job once it has ended or paused; meanwhile a live table, or lines without a terminal."""
    console = errors()
    if not console.is_terminal:
        return watch(client, job_id)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            job = client.get(job_id)
            live.update(_view(job, client.trials(job_id, **wanted), console), refresh=True)
            if job.status.state in (*TERMINAL, "PAUSED"):
                return job
            time.sleep(POLL_S)


def _view(job: JobBody, found: TrialListBody, console: Console) -> Group:
    """How far it is, the best so far, and as many runs as there is room for."""
    room = max(1, console.height - ROOM)
    items = found.items
    if len(items) > room:
        chosen = sorted(items, key=lambda one: FIRST.index(one.state))[:room]
        items = [one for one in items if one in chosen]
    hidden = len(found.items) - len(items)
    lines = [progress_line(job), best_line(found)]
    more = [Text(f"and {hidden} more")] if hidden else []
    head = [Text(line) for line in lines if line]
    return Group(*head, trials_table(items), *more)
