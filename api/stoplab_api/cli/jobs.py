"""`stoplab jobs`: the REST client."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from stoplab_api.bodies import JobBody
from stoplab_api.cli import artifacts, metrics, report, trials
from stoplab_api.cli.completing import kinds, states
from stoplab_api.cli.connecting import connect
from stoplab_api.cli.extend import extend, limits, retry
from stoplab_api.cli.show import (
    AsJson,
    BadInput,
    JobId,
    print_json,
    print_table,
    print_text,
    reported,
    say,
)
from stoplab_api.cli.studies import print_comparison
from stoplab_api.cli.submit import Labels, label_pairs, told
from stoplab_api.cli.watching import exit_code, watch, why
from stoplab_api.client import Client

app = typer.Typer(no_args_is_help=True, help="Jobs on the server.")
app.command()(trials.trials)
app.command()(report.report)
app.command()(metrics.metrics)
app.command()(artifacts.artifacts)
app.command("extend")(extend)
app.command("limits")(limits)
app.command("retry")(retry)


@app.command("list")
@reported
def list_jobs(
    state: Annotated[
        list[str] | None,
        typer.Option(help="In this state; repeated: or.", autocompletion=states),
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Of this kind; repeated: or.", autocompletion=kinds)
    ] = None,
    labels: Labels = None,
    q: Annotated[str | None, typer.Option(help="Start of the name or id.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="Most jobs on a page.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="`next_cursor` of the page before.")] = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    marks = label_pairs(labels)
    with connect() as client:
        page = client.list(
            states=[word.upper() for word in state or ()],
            kinds=kind or (),
            labels=marks,
            q=q,
            limit=limit,
            cursor=cursor,
        )
    if as_json:
        print_json(page)
        return
    columns = ("id", "kind", "name", "state", "progress", "owner", "created", "why")
    print_table(
        columns,
        [
            (job.id, job.kind, job.name, job.status.state, _progress(job), job.owner,
             f"{job.created_at:%Y-%m-%d %H:%M:%S}", why(job))
            for job in page.items
        ],
    )  # fmt: skip
    if not page.items:
        say("no jobs" + (" like that" if state or kind or labels or q else "; `stoplab submit`"))
    if page.next_cursor:
        print_text(f"more: --cursor {page.next_cursor}")


@app.command()
@reported
def show(job_id: JobId, as_json: AsJson = False) -> None:
    """Show one job."""
    with connect() as client:
        job = client.get(job_id)
    if as_json:
        print_json(job)
    else:
        _print_job(job)


@app.command("watch")
@reported
def watch_job(job_id: JobId, as_json: AsJson = False) -> None:
    """Show how a job goes on until it ends; the exit code tells how."""
    with connect() as client:
        job = watch(client, job_id)
    told(job, as_json)
    raise typer.Exit(exit_code(job))


@app.command()
@reported
def logs(
    job_id: JobId,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Until the job ends.")] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="Of one training process.")] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="The last lines only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print what a job wrote."""
    if as_json and follow:
        raise BadInput("--json prints one document; it cannot follow a log")
    with connect() as client:
        pieces = client.logs(job_id, follow=follow, rank=rank, tail=tail)
        if as_json:
            print_json({"id": job_id, "rank": rank, "log": "".join(pieces)})
            return
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()


@app.command()
@reported
def events(job_id: JobId, as_json: AsJson = False) -> None:
    """Print a job's history: who did what, and when."""
    with connect() as client:
        items = client.events(job_id)
    if as_json:
        print_json({"items": [event.model_dump(mode="json") for event in items]})
        return
    columns = ("at", "actor", "verb", "from", "to", "reason", "message")
    print_table(
        columns,
        [
            (f"{e.at:%Y-%m-%d %H:%M:%S}", e.actor, e.verb, e.from_state, e.to_state,
             e.reason_code, e.message)
            for e in items
        ],
    )  # fmt: skip


@app.command()
@reported
def comparison(job_id: JobId, as_json: AsJson = False) -> None:
    """Print a comparison's result."""
    with connect() as client:
        found = client.comparison(job_id)
    if as_json:
        print_json(found)
    else:
        print_comparison(found)


@app.command()
@reported
def cancel(job_id: JobId, as_json: AsJson = False) -> None:
    """End a job."""
    _act(Client.cancel, job_id, as_json)


@app.command()
@reported
def pause(job_id: JobId, as_json: AsJson = False) -> None:
    """Let a job save and stop; `resume` goes on with it."""
    _act(Client.pause, job_id, as_json)


@app.command()
@reported
def resume(job_id: JobId, as_json: AsJson = False) -> None:
    """Put a paused job back into the queue."""
    _act(Client.resume, job_id, as_json)


@app.command()
@reported
def delete(job_id: JobId, as_json: AsJson = False) -> None:
    """Remove a finished job with its checkpoints; its runs in MLflow stay."""
    with connect() as client:
        client.delete(job_id)
    if as_json:
        print_json({"id": job_id, "deleted": True})
    else:
        print_text(f"{job_id} is deleted")


def _act(verb: Callable[[Client, str], JobBody], job_id: str, as_json: bool) -> None:
    with connect() as client:
        job = verb(client, job_id)
    if as_json:
        print_json(job)
    else:
        print_text(f"{job.id} {job.status.state}")


def _print_job(job: JobBody) -> None:
    status = job.status
    lines = {
        "job": job.id,
        "kind": job.kind,
        "name": job.name,
        "state": " ".join(word for word in (status.state, status.reason_code) if word),
        "message": status.message,
        "waits": f"{status.queue.position}. in the queue: {status.queue.reason}"
        if status.queue
        else None,
        "attempt": status.attempt or None,
        "progress": _progress(job),
        "warning": status.progress.warning if status.progress else None,
        "labels": ", ".join(f"{key}={value}" for key, value in job.labels.items()),
        "owner": f"{job.owner} ({job.project})",
        "created": job.created_at,
        "started": job.started_at,
        "finished": job.finished_at,
        "mlflow": job.links.get("mlflow"),
        "can": ", ".join(status.allowed_actions),
    }
    for name, value in lines.items():
        if value:
            print_text(f"{name:<9} {value}")


def _progress(job: JobBody) -> str | None:
    progress = job.status.progress
    if progress is None:
        return None
    percent = f" ({progress.step / progress.steps:.0%})" if progress.steps else ""
    return f"{progress.step}/{progress.steps}{percent}"
