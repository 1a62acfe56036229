"""`stoplab spec`: look at specs without running them."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from stoplab_api.cli.show import AsJson, Sets, SpecFile, print_json, print_text, reported
from stoplab_platform.specs import KINDS, load_spec, parse_assignments
from stoplab_platform.specs.schema import schema_of

app = typer.Typer(no_args_is_help=True, help="Check and show specs.")


class Kind(StrEnum):
    """The kinds of specs, as the command line completes them."""

    PRETRAIN = "pretrain"
    SWEEP = "sweep"
    COMPARE = "compare"
    EVALUATE = "evaluate"


@app.command()
@reported
def validate(file: SpecFile, changes: Sets = None, as_json: AsJson = False) -> None:
    """Tell every mistake at once, each with its path; exit code 2 if there is one."""
    spec = load_spec(file, parse_assignments(changes or ()))
    told = {"kind": spec.kind, "name": spec.name, "spec_digest": spec.digest()}
    if as_json:
        print_json({"valid": True, **told})
    else:
        print_text(f"{file} is a valid spec of kind {spec.kind}, {told['spec_digest'][:12]}")


@app.command()
@reported
def show(file: SpecFile, changes: Sets = None, as_json: AsJson = False) -> None:
    """Print the whole spec, defaults filled in."""
    spec = load_spec(file, parse_assignments(changes or ()))
    if as_json:
        print_json(spec.plain())
    else:
        print_text(spec.to_yaml().rstrip())


@app.command()
@reported
def schema(
    kind: Annotated[Kind, typer.Argument(help="The kind of spec.")], as_json: AsJson = False
) -> None:
    """Print the JSON schema of a kind of spec: each field with unit, default and source."""
    found = schema_of(KINDS[kind.value])
    if as_json:
        print_json(found)
    else:
        print_text(json.dumps(found, indent=1, ensure_ascii=False))
