"""`stoplab jobs extend`, `retry`, `limits`: more of a study, or a job under other limits."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stoplab_api.bodies import JobBody
from stoplab_api.cli.connecting import connect
from stoplab_api.cli.show import AsJson, BadInput, JobId, print_json, print_text, reported
from stoplab_platform.errors import Problem, SpecError
from stoplab_platform.specs import parse_assignments, read_yaml

NONE = "none"
Limit = Annotated[str | None, typer.Option(metavar="N", help=f"A number, or `{NONE}`.")]


@reported
def extend(
    job_id: JobId,
    seeds: Annotated[
        str | None, typer.Option(metavar="5,6,…", help="A comparison's new blocks.")
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option(metavar="AXIS=[…]", help="Values to add to an axis of a sweep; repeatable."),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Points of a drawn sweep, in all.")] = None,
    replicates: Annotated[int | None, typer.Option(help="Seeds per point, in all.")] = None,
    trials: Annotated[int | None, typer.Option(help="Most runs, in all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add seeds or points to a finished study: a new job that runs only what is new."""
    wished: dict[str, Any] = {
        "seeds": _numbers(seeds),
        "search": None if samples is None else {"samples": samples},
        "replicates": replicates,
        "limits": None if trials is None else {"trials": trials},
    }
    additions = {name: value for name, value in wished.items() if value is not None}
    if not additions and not values:
        raise BadInput("nothing to add: give --seeds, --values, --samples, ...")
    with connect() as client:
        if values:
            additions["space"] = _values(client.get(job_id), values)
        job = client.extend(job_id, additions)
    _told(job, as_json, f"{job.id} {job.status.state}, extends {job_id}")


@reported
def retry(
    job_id: JobId,
    gpu_hours: Limit = None,
    wall_hours: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Submit a finished job's spec again, as a new job that takes over what that one has."""
    changes = _limits({"gpu_hours": gpu_hours, "wall_hours": wall_hours})
    with connect() as client:
        job = client.retry(job_id, limits=changes or None)
    _told(job, as_json, f"{job.id} {job.status.state}")


@reported
def limits(
    job_id: JobId,
    max_concurrent: Limit = None,
    trials: Limit = None,
    gpu_hours: Limit = None,
    wall_hours: Limit = None,
    as_json: AsJson = False,
) -> None:
    """Change the limits of a job, also while it runs."""
    changes = _limits(
        {
            "max_concurrent": max_concurrent,
            "trials": trials,
            "gpu_hours": gpu_hours,
            "wall_hours": wall_hours,
        }
    )
    if not changes:
        raise BadInput("nothing to change: give --max-concurrent, --trials, ... ")
    with connect() as client:
        job = client.change(client.get(job_id), limits=changes)
    _told(job, as_json, f"{job.id} limits: {job.limits}")


def _limits(asked: dict[str, str | None]) -> dict[str, Any]:
    return {name: _limit(name, text) for name, text in asked.items() if text is not None}


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise SpecError.of("seeds", f"{text!r}: give whole numbers, as 5,6,7") from error


def _values(job: JobBody, assignments: list[str]) -> dict[str, Any]:
    """Axis to values, in the list that the study's own axis uses."""
    found = {}
    for path, more in parse_assignments(assignments).items():
        axis = job.spec.get("space", {}).get(path, {})
        way = next((way for way in ("grid", "choice") if axis.get(way)), "grid")
        if not isinstance(more, list):
            raise SpecError([Problem(("space", path), f"{more!r}: give a list, as [0.5, 0.75]")])
        found[path] = {way: more}
    return found


def _limit(name: str, text: str) -> Any:
    """The number behind an option; what it must be is the server's to say."""
    value = None if text == NONE else read_yaml(text)
    if value is not None and not isinstance(value, int | float):
        raise SpecError.of(f"limits.{name}", f"{text!r} is no number; `{NONE}` lifts the limit")
    return value


def _told(job: JobBody, as_json: bool, text: str) -> None:
    if as_json:
        print_json(job)
    else:
        print_text(text)
