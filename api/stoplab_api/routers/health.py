"""Whether the server lives, and whether it can do its work. No token from this machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from fastapi import APIRouter, Depends

from stoplab_api.answers import Code, ReadyBody
from stoplab_api.auth import local_or_caller
from stoplab_api.context import Lab, LabDep
from stoplab_api.examples import READY
from stoplab_api.problems import ApiProblem, documented
from stoplab_platform.errors import StoreUnavailable

MLFLOW_TIMEOUT_S = 2.0
STALE_PASSES = 15
"""Periods without a pass after which the reconciler counts as stuck."""

router = APIRouter(tags=["health"], dependencies=[Depends(local_or_caller)])


@router.get("/livez")
def live() -> dict[str, bool]:
    """The process answers."""
    return {"alive": True}


@router.get(
    "/readyz",
    response_model=ReadyBody,
    responses={
        200: {"content": {"application/json": {"example": READY}}},
        **documented(Code.NOT_READY),
    },
)
def ready(lab: LabDep) -> Any:
    """The database takes a write, the cluster and MLflow answer, the reconciler moves."""
    parts: dict[str, Callable[[Lab], str | None]] = {
        "database": _database,
        "runner": _runner,
        "mlflow": _mlflow,
        "reconciler": _reconciler,
    }
    wrong = {name: check(lab) for name, check in parts.items()}
    checks = {name: {"ok": text is None, "message": text} for name, text in wrong.items()}
    away = [f"{name}: {text}" for name, text in wrong.items() if text is not None]
    if away:
        raise ApiProblem(Code.NOT_READY, "; ".join(away), more={"ready": False, "checks": checks})
    return {"ready": True, "checks": checks}


def _database(lab: Lab) -> str | None:
    try:
        lab.store.ping()
    except StoreUnavailable as error:
        return str(error)
    return None


def _runner(lab: Lab) -> str | None:
    return None if lab.runner.alive() else "the cluster does not answer"


def _mlflow(lab: Lab) -> str | None:
    uri = lab.settings.tracking_uri
    if not uri.startswith(("http://", "https://")):
        return None
    try:
        httpx.get(f"{uri.rstrip('/')}/health", timeout=MLFLOW_TIMEOUT_S).raise_for_status()
    except httpx.HTTPError as error:
        return f"{uri}: {error or type(error).__name__}"
    return None


def _reconciler(lab: Lab) -> str | None:
    if not lab.reconciling:
        return None
    age = lab.reconciler.last_pass_age_s
    limit = STALE_PASSES * lab.settings.reconcile_period_s
    return None if age <= limit else f"its last pass was {age:.0f} s ago"
