"""Who asks: bearer tokens, roles, scopes, and the few pages that need neither."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from stoplab_api.answers import Code
from stoplab_api.context import Lab, LabDep
from stoplab_api.problems import ApiProblem
from stoplab_api.rates import limited
from stoplab_platform.jobs.models import Principal, Role, Scope

CHALLENGE = 'Bearer realm="stoplab"'
RANKS = (Role.VIEWER, Role.SUBMITTER, Role.ADMIN)

_bearer = HTTPBearer(
    auto_error=False, description="A token of `stoplab tokens create`, or the local lab's own."
)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


def caller(request: Request, lab: LabDep, credentials: Credentials) -> Principal:
    """Whose token came with the request; 401 without a valid one, 429 when it asks too often."""
    principal = _principal(request, lab, credentials)
    request.state.owner = principal.owner
    key = principal.token_id or principal.owner
    if wait_s := lab.rates.requests.take(key):
        raise limited(lab.rates.requests, wait_s, "a token")
    return principal


async def local_or_caller(request: Request, lab: LabDep, credentials: Credentials) -> None:
    """Let anybody on this machine in, others with a token (health checks); no rate is kept.

    It takes none of the threads that other requests wait in: the server lives although they hang.
    """
    if not _from_loopback(request):
        await run_sync(_principal, request, lab, credentials)


def at_least(role: Role, scope: Scope) -> Callable[[Principal], Awaitable[Principal]]:
    """A dependency that lets ``role`` and those above it in, if the token has ``scope``."""

    async def check(principal: Known) -> Principal:
        if RANKS.index(principal.role) < RANKS.index(role):
            raise ApiProblem(
                Code.FORBIDDEN, f"this needs the role {role}; the token's is {principal.role}"
            )
        if principal.scopes is not None and scope not in principal.scopes:
            has = ", ".join(sorted(principal.scopes))
            raise ApiProblem(Code.FORBIDDEN, f"this needs the scope {scope}; the token has {has}")
        return principal

    return check


Known = Annotated[Principal, Depends(caller)]
"""Whoever has a valid token, whatever it is for."""
Caller = Annotated[Principal, Depends(at_least(Role.VIEWER, Scope.JOBS_READ))]
Submitter = Annotated[Principal, Depends(at_least(Role.SUBMITTER, Scope.JOBS_WRITE))]
Auditor = Annotated[Principal, Depends(at_least(Role.ADMIN, Scope.JOBS_READ))]
Admin = Annotated[Principal, Depends(at_least(Role.ADMIN, Scope.TOKENS_ADMIN))]


def _principal(
    request: Request, lab: Lab, credentials: HTTPAuthorizationCredentials | None
) -> Principal:
    if credentials is None:
        raise ApiProblem(
            Code.UNAUTHENTICATED,
            "no bearer token came with the request",
            headers={"WWW-Authenticate": CHALLENGE},
        )
    principal = lab.store.principal(credentials.credentials)
    if principal is None:
        # A valid token is never refused for them: behind a proxy all have one address.
        guesses, address = lab.rates.guesses, request.client.host if request.client else ""
        if wait_s := guesses.take(address):
            raise limited(guesses, wait_s, "an address that sent wrong tokens")
        raise ApiProblem(
            Code.UNAUTHENTICATED,
            "the token is unknown, expired or revoked",
            headers={"WWW-Authenticate": f'{CHALLENGE}, error="invalid_token"'},
        )
    return principal


def _from_loopback(request: Request) -> bool:
    if request.client is None:
        return False
    try:
        return ip_address(request.client.host).is_loopback
    except ValueError:
        return False
