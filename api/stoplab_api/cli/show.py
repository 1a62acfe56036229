"""What commands share: output for people and for programs, errors, options, the client."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stoplab_api.cli.advice import next_step
from stoplab_api.cli.completing import job_ids, spec_files
from stoplab_api.client import ApiError
from stoplab_platform.errors import DataError, SettingsError, SpecError, StoplabError
from stoplab_platform.exits import Exit

WIDE = 200  # where no terminal tells a width: a table is not cut
REFUSALS = (400, 415, 422)
"""HTTP statuses that blame the input."""

P = ParamSpec("P")
R = TypeVar("R")

SpecFile = Annotated[
    Path,
    typer.Argument(metavar="SPEC", help="A spec: a YAML file.", autocompletion=spec_files),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="a.b=value", help="Set any field of the spec; may be repeated."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id.", autocompletion=job_ids)]


class BadInput(StoplabError):
    """A command line that asks for nothing sensible."""


def reported(command: Callable[P, R]) -> Callable[P, R]:
    """Turns errors that are meant for people into a message and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        # Also what Settings finds wrong with the environment.
        except (StoplabError, ValidationError) as error:
            if kwargs.get("as_json"):
                print_json(_document(error))
            errors().print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
            if (advice := next_step(error)) is not None:
                say(f"next: {advice}")
            raise typer.Exit(_code(error)) from error

    return run


def say(text: str) -> None:
    """A line of progress: on stderr, so that stdout holds the result alone."""
    errors().print(text, markup=False, highlight=False, soft_wrap=True)


def out() -> Console:
    """The console for results."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def errors() -> Console:
    """The console for progress and errors."""
    return Console(stderr=True)


def print_text(text: str) -> None:
    """A line as it is."""
    out().print(text, markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    typer.echo(json.dumps(plain, indent=1, ensure_ascii=False, default=str))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on stdout."""
    out().print(made_table(columns, rows), markup=False, highlight=False)


def made_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table; None shows as a dash."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*("-" if cell is None else Text(str(cell)) for cell in row))
    return table


def _document(error: StoplabError | ValidationError) -> dict[str, Any]:
    """An error for programs: a spec's problems, REST's own problem document, or a sentence."""
    if isinstance(error, SpecError):
        problems = [(p.dotted, p.pointer(), p.message) for p in error.problems]
        names = ("path", "pointer", "message")
        return {"errors": [dict(zip(names, problem, strict=True)) for problem in problems]}
    more = {} if (advice := next_step(error)) is None else {"next_step": advice}
    if isinstance(error, ApiError):
        return {**error.problem.model_dump(mode="json"), **more}
    return {"error": str(error), **more}


def _code(error: StoplabError | ValidationError) -> Exit:
    """Whether the input is to blame."""
    if isinstance(error, ApiError):
        return Exit.BAD_INPUT if error.status in REFUSALS else Exit.FAILED
    refused = isinstance(error, BadInput | SpecError | DataError | SettingsError | ValidationError)
    return Exit.BAD_INPUT if refused else Exit.FAILED
