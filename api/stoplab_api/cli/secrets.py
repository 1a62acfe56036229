"""`stoplab secrets`: values that specs and settings name as `secret://NAME`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from stoplab_api.cli.show import AsJson, print_json, print_text, reported, say
from stoplab_platform.secret_store import Secrets
from stoplab_platform.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Secrets that specs name as secret://NAME.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The name, without secret://.")]
Project = Annotated[str, typer.Option(help="Whose jobs may use it.")]


@app.command("set")
@reported
def set_secret(name: Name, project: Project = "default", as_json: AsJson = False) -> None:
    """Keep a secret in the home, read from standard input (asked for at a terminal)."""
    secrets = Secrets(Settings(), project)
    if sys.stdin.isatty():
        value = typer.prompt("value", hide_input=True)
    else:
        value = sys.stdin.read().removesuffix("\n")
    secrets.set(name, value)
    if as_json:
        print_json({"name": name, "project": project})
    else:
        say(f"secret://{name} is kept for jobs of {project}")


@app.command("list")
@reported
def list_secrets(project: Project = "default", as_json: AsJson = False) -> None:
    """List the names that the home keeps; never the values."""
    names = Secrets(Settings(), project).names()
    if as_json:
        print_json({"items": [{"name": name, "project": project} for name in names]})
    for name in [] if as_json else names:
        print_text(f"secret://{name}")


@app.command()
@reported
def remove(name: Name, project: Project = "default", as_json: AsJson = False) -> None:
    """Forget a secret."""
    removed = Secrets(Settings(), project).remove(name)
    if as_json:
        print_json({"name": name, "project": project, "removed": removed})
    else:
        say(f"secret://{name} is forgotten" if removed else f"there is no secret {name!r}")
