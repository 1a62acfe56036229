"""Who asks: bearer tokens, roles, and the few pages that need neither."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from stoplab_api.answers import Code
from stoplab_api.context import LabDep
from stoplab_api.problems import ApiProblem
from stoplab_platform.jobs.models import Principal, Role
from stoplab_platform.jobs.store import JobStore

CHALLENGE = 'Bearer realm="stoplab"'
RANKS = (Role.VIEWER, Role.SUBMITTER, Role.ADMIN)

_bearer = HTTPBearer(
    auto_error=False, description="A token of `stoplab tokens create`, or the local lab's own."
)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]


def caller(lab: LabDep, credentials: Credentials) -> Principal:
    """Whose token came with the request; 401 without a valid one."""
    return _principal(lab.store, credentials)


def local_or_caller(request: Request, lab: LabDep, credentials: Credentials) -> None:
    """Let anybody on this machine in, others with a token (health checks)."""
    if not _from_loopback(request):
        _principal(lab.store, credentials)


def at_least(role: Role) -> Callable[[Principal], Principal]:
    """A dependency that lets ``role`` and those above it in; 403 for others."""

    def check(principal: Caller) -> Principal:
        if RANKS.index(principal.role) < RANKS.index(role):
            raise ApiProblem(
                Code.FORBIDDEN, f"this needs the role {role}; the token's is {principal.role}"
            )
        return principal

    return check


Caller = Annotated[Principal, Depends(caller)]
Submitter = Annotated[Principal, Depends(at_least(Role.SUBMITTER))]
Admin = Annotated[Principal, Depends(at_least(Role.ADMIN))]


def _principal(store: JobStore, credentials: HTTPAuthorizationCredentials | None) -> Principal:
    if credentials is None:
        raise ApiProblem(
            Code.UNAUTHENTICATED,
            "no bearer token came with the request",
            headers={"WWW-Authenticate": CHALLENGE},
        )
    principal = store.principal(credentials.credentials)
    if principal is None:
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
