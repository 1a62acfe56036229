"""Hooks for schemathesis: what 422 stands for, and the token that must outlive the run."""

from __future__ import annotations

import os

import schemathesis
from schemathesis import Case, CheckContext, HookContext, Response

TOKEN = "STOPLAB_TRIED_TOKEN"
"""Names the token that the run uses, for `tests/api/schemathesis.toml`."""
OWN = "STOPLAB_TRIED_TOKEN_ID"
"""Names that token's id."""

FITTING = ("invalid-spec", "idempotency-key-reused")


@schemathesis.check
def only_specs_are_refused_as_a_whole(
    ctx: CheckContext, response: Response, case: Case
) -> bool | None:
    """What fits its schema may only be refused across a spec's fields, or for its key's past."""
    positive = case.meta is not None and case.meta.generation.mode.is_positive
    if positive and response.status_code == 422:
        assert response.json()["code"] in FITTING, response.text
    return None


@schemathesis.check
def errors_are_problems(ctx: CheckContext, response: Response, case: Case) -> bool | None:
    """Every answer from 400 up says what is wrong, and nothing of the server's inside."""
    if response.status_code >= 400 and response.request.method != "HEAD":
        assert response.headers["content-type"] == ["application/problem+json"]
        assert response.json()["status"] == response.status_code
        assert "Traceback" not in response.text
    return None


@schemathesis.hook
def filter_case(context: HookContext, case: Case) -> bool:
    """Leave the run its own token."""
    return (case.path_parameters or {}).get("token_id") != os.environ[OWN]
