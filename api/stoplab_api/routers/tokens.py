"""API tokens of a project; its administrators make and end them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from stoplab_api.answers import Code, FreshTokenBody, TokenListBody
from stoplab_api.auth import Admin
from stoplab_api.bodies import NewTokenBody
from stoplab_api.context import LabDep
from stoplab_api.deps import body_of, request_body
from stoplab_api.examples import FRESH_TOKEN, NEW_TOKEN, TOKENS
from stoplab_api.problems import ApiProblem, documented
from stoplab_platform.jobs.models import Principal, Role, Scope, Token
from stoplab_platform.jobs.views import stamp

router = APIRouter(prefix="/tokens", tags=["tokens"])


@router.post(
    "",
    status_code=201,
    response_model=FreshTokenBody,
    responses={
        201: {"content": {"application/json": {"example": FRESH_TOKEN}}},
        **documented(Code.FORBIDDEN, Code.INVALID_BODY),
    },
    openapi_extra=request_body(NewTokenBody, NEW_TOKEN),
)
def create_token(
    caller: Admin, lab: LabDep, body: Annotated[NewTokenBody, Depends(body_of(NewTokenBody))]
) -> Any:
    """Make a token. The answer holds its secret, which is kept nowhere."""
    expires_at = None
    if body.expires_in_days is not None:
        expires_at = datetime.now(UTC) + timedelta(days=body.expires_in_days)
    token, secret = lab.store.create_token(
        body.name,
        owner=body.owner,
        project=caller.project,
        role=Role(body.role),
        expires_at=expires_at,
        scopes=_scopes(caller, body),
        actor=caller.owner,
    )
    return {**_token(token), "secret": secret}


@router.get(
    "",
    response_model=TokenListBody,
    responses={
        200: {"content": {"application/json": {"example": TOKENS}}},
        **documented(Code.FORBIDDEN),
    },
)
def list_tokens(caller: Admin, lab: LabDep) -> Any:
    """The project's tokens, oldest first, ended ones too."""
    return {"items": [_token(token) for token in lab.store.tokens(caller.project)]}


@router.post(
    "/{token_id}/rotate",
    response_model=FreshTokenBody,
    responses={
        200: {"content": {"application/json": {"example": FRESH_TOKEN}}},
        **documented(Code.FORBIDDEN, Code.NOT_FOUND),
    },
)
def rotate_token(caller: Admin, lab: LabDep, token_id: str) -> Any:
    """Give a token a new secret, shown this once; the old one ends at once.

    One that expires lives as long again. A token cannot renew one with scopes beyond its own.
    """
    for token in lab.store.tokens(caller.project):
        if token.id == token_id:
            _check_within(caller, token.scopes)
    token, secret = lab.store.rotate_token(token_id, caller.project, actor=caller.owner)
    return {**_token(token), "secret": secret}


@router.delete(
    "/{token_id}",
    status_code=204,
    responses={
        204: {"description": "It no longer works."},
        **documented(Code.FORBIDDEN, Code.NOT_FOUND),
    },
)
def revoke_token(caller: Admin, lab: LabDep, token_id: str) -> None:
    """End a token at once."""
    lab.store.revoke_token(token_id, caller.project, actor=caller.owner)


def _scopes(caller: Principal, body: NewTokenBody) -> frozenset[Scope] | None:
    """The new token's; never more than the maker's own."""
    asked = None if body.scopes is None else frozenset(map(Scope, body.scopes))
    _check_within(caller, asked)
    return asked


def _check_within(caller: Principal, scopes: frozenset[Scope] | None) -> None:
    """Whose secret a caller gets to see may not do more than the caller; None: everything."""
    if caller.scopes is not None and (scopes is None or not scopes <= caller.scopes):
        has = ", ".join(sorted(caller.scopes))
        raise ApiProblem(Code.FORBIDDEN, f"a token cannot give scopes beyond its own: {has}")


def _token(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "owner": token.owner,
        "project": token.project,
        "role": token.role,
        "created_at": stamp(token.created_at),
        "expires_at": stamp(token.expires_at),
        "revoked_at": stamp(token.revoked_at),
        "scopes": None if token.scopes is None else sorted(token.scopes),
        "last_used_at": stamp(token.last_used_at),
    }
