"""`stoplab tokens`: who may call the API."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

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

app = typer.Typer(no_args_is_help=True, help="API tokens of your project.")


class TokenRole(StrEnum):
    """What a token may do."""

    VIEWER = "viewer"
    SUBMITTER = "submitter"
    ADMIN = "admin"


@app.command()
@reported
def create(
    name: Annotated[str, typer.Argument(help="What the token is for.")],
    owner: Annotated[str, typer.Option(help="Who uses it.")],
    role: Annotated[TokenRole, typer.Option(help="What it may do.")] = TokenRole.SUBMITTER,
    expires_in_days: Annotated[
        float | None, typer.Option(help="Days until it stops working; default never.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a token; its secret is shown this once."""
    with connect() as client:
        token = client.create_token(
            name, owner=owner, role=role.value, expires_in_days=expires_in_days
        )
    if as_json:
        print_json(token)
    else:
        say(f"{token.id}: {token.role} for {token.owner}; the secret is shown only now")
        print_text(token.secret)


@app.command("list")
@reported
def list_tokens(as_json: AsJson = False) -> None:
    """List the project's tokens, without their secrets."""
    with connect() as client:
        tokens = client.tokens()
    if as_json:
        print_json({"items": [token.model_dump(mode="json") for token in tokens]})
    else:
        columns = ("id", "name", "owner", "role", "created", "expires", "revoked")
        print_table(
            columns,
            [
                (t.id, t.name, t.owner, t.role, t.created_at, t.expires_at, t.revoked_at)
                for t in tokens
            ],
        )


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
