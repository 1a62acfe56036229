"""`stoplab tokens`: who may call the API."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from stoplab_api.answers import FreshTokenBody
from stoplab_api.bodies import NewTokenBody
from stoplab_api.cli.completing import token_ids
from stoplab_api.cli.connecting import connect
from stoplab_api.cli.show import (
    AsJson,
    print_json,
    print_table,
    print_text,
    reported,
    say,
)
from stoplab_api.lab_secrets import create_directly
from stoplab_platform.settings import Settings

app = typer.Typer(no_args_is_help=True, help="API tokens of your project.")


class TokenRole(StrEnum):
    """What a token may do."""

    VIEWER = "viewer"
    SUBMITTER = "submitter"
    ADMIN = "admin"


class TokenScope(StrEnum):
    """A part of what a role may do."""

    JOBS_READ = "jobs:read"
    JOBS_WRITE = "jobs:write"
    TOKENS_ADMIN = "tokens:admin"


@app.command()
@reported
def create(
    name: Annotated[str, typer.Argument(help="What the token is for.")],
    owner: Annotated[str, typer.Option(help="Who uses it.")],
    role: Annotated[TokenRole, typer.Option(help="What it may do.")] = TokenRole.SUBMITTER,
    expires_in_days: Annotated[
        float | None, typer.Option(help="Days until it stops working; default never.")
    ] = None,
    scope: Annotated[
        list[TokenScope] | None,
        typer.Option(help="What of its role it may use; may be repeated. Default all."),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            help="Make it in this project, which it may begin: written straight into the home's "
            "database, so that no token is needed. Default: your own project, by the API."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token; its secret is shown this once."""
    asked = NewTokenBody(
        name=name,
        owner=owner,
        role=role.value,
        expires_in_days=expires_in_days,
        scopes=[one.value for one in scope] if scope else None,
    )
    if project is not None:
        _show(create_directly(Settings(), project, asked), as_json)
        return
    with connect() as client:
        _show(client.create_token(**asked.model_dump()), as_json)


@app.command()
@reported
def rotate(
    token_id: Annotated[str, typer.Argument(metavar="TOKEN", help="A token's id.")],
    as_json: AsJson = False,
) -> None:
    """Give a token a new secret, shown this once; the old one ends at once."""
    with connect() as client:
        _show(client.rotate_token(token_id), as_json)


@app.command("list")
@reported
def list_tokens(as_json: AsJson = False) -> None:
    """List the project's tokens, without their secrets."""
    with connect() as client:
        tokens = client.tokens()
    if as_json:
        print_json({"items": [token.model_dump(mode="json") for token in tokens]})
    else:
        columns = ("id", "name", "owner", "role", "scopes", "used", "expires", "revoked")
        rows = [
            (t.id, t.name, t.owner, t.role, " ".join(t.scopes or ["all"]),
             t.last_used_at, t.expires_at, t.revoked_at)
            for t in tokens
        ]  # fmt: skip
        print_table(columns, rows)


@app.command()
@reported
def revoke(
    token_id: Annotated[
        str, typer.Argument(metavar="TOKEN", help="A token's id.", autocompletion=token_ids)
    ],
    as_json: AsJson = False,
) -> None:
    """End a token."""
    with connect() as client:
        client.revoke_token(token_id)
    if as_json:
        print_json({"id": token_id, "revoked": True})
    else:
        print_text(f"{token_id} is revoked")


def _show(token: FreshTokenBody, as_json: bool) -> None:
    if as_json:
        print_json(token)
    else:
        whose = f"{token.role} for {token.owner} in {token.project}"
        say(f"{token.id}: {whose}; the secret is shown only now")
        print_text(token.secret)
