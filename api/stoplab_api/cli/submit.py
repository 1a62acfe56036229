"""`stoplab submit`: hand a spec to the server."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from stoplab_api.bodies import JobBody
from stoplab_api.cli.connecting import connect
from stoplab_api.cli.show import (
    AsJson,
    BadInput,
    Sets,
    SpecFile,
    print_json,
    print_text,
    reported,
    say,
)
from stoplab_api.cli.watching import exit_code, watch
from stoplab_api.places import absolute_paths
from stoplab_platform.specs import AnySpec, load_spec, parse_assignments, parse_spec

Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="key=value", help="May be repeated.")
]
Key = Annotated[
    str | None, typer.Option(help="The same key submits at most one job, however often.")
]


@reported
def submit(
    file: SpecFile,
    changes: Sets = None,
    labels: Labels = None,
    priority: Annotated[int, typer.Option(help="Higher ones start first.")] = 0,
    idempotency_key: Key = None,
    watching: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and run nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a spec to the server. With --watch the exit code tells how the job ended."""
    spec = load_here(file, changes)
    marks = label_pairs(labels)
    with connect() as client:
        if dry_run:
            answer = client.dry_run(spec, labels=marks, priority=priority)
            _print_dry_run(answer.model_dump(mode="json"), as_json)
            return
        job = client.submit(spec, labels=marks, priority=priority, key=idempotency_key)
        if not watching:
            if as_json:
                print_json(job)
            else:
                print_text(job.id)
            return
        say(f"{job.id}: Ctrl-C ends the watching, not the job")
        job = watch(client, job.id)
    told(job, as_json)
    raise typer.Exit(exit_code(job))


def load_here(file: Path, changes: Iterable[str] | None) -> AnySpec:
    """A spec file, overrides laid over it, its relative paths seen from the working folder."""
    spec = load_spec(file, parse_assignments(changes or ()))
    return parse_spec(absolute_paths(spec.plain(), Path.cwd()))


def label_pairs(labels: Iterable[str] | None) -> dict[str, str]:
    """`key=value` (or `key:value`, as REST has it) to a mapping."""
    pairs = {}
    for text in labels or ():
        sign = min((sign for sign in "=:" if sign in text), key=text.index, default="")
        if not sign or text.startswith(sign):
            raise BadInput(f"{text!r} is no label; give key=value")
        key, _, value = text.partition(sign)
        pairs[key] = value
    return pairs


def told(job: JobBody, as_json: bool) -> None:
    """Say how a job that was watched stands now, and what can be done where it failed."""
    if job.status.message:
        say(job.status.message)
    if job.status.state == "FAILED":
        say(f"its log: stoplab jobs logs {job.id} --tail 50; again: stoplab jobs retry {job.id}")
    if as_json:
        print_json(job)
    else:
        print_text(f"{job.id} {job.status.state}")


def _print_dry_run(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    demand = ", ".join(f"{value:g} {name}" for name, value in answer["demand"].items() if value)
    print_text(f"{answer['kind']} {answer['name']}: would be taken, and reserve {demand}")
    print_text("`stoplab estimate` says what it would take")
