"""Whether the server lives, whether it can do its work, and its numbers. No token from here."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from prometheus_client.exposition import choose_encoder

from stoplab_api.answers import Code, ReadyBody
from stoplab_api.auth import local_or_caller
from stoplab_api.context import LabDep
from stoplab_api.examples import PROMETHEUS, READY
from stoplab_api.probes import what_is_wrong
from stoplab_api.problems import ApiProblem, documented

OPEN_HERE: dict[str, Any] = {"security": [{}]}
"""For OpenAPI: a token, or none (from this machine)."""

router = APIRouter(tags=["health"], dependencies=[Depends(local_or_caller)])


@router.get("/livez", openapi_extra=OPEN_HERE)
async def live() -> dict[str, bool]:
    """The process answers."""
    return {"alive": True}


@router.get(
    "/readyz",
    response_model=ReadyBody,
    responses={
        200: {"content": {"application/json": {"example": READY}}},
        **documented(Code.NOT_READY),
    },
    openapi_extra=OPEN_HERE,
)
def ready(lab: LabDep) -> Any:
    """The database takes a write, the cluster and MLflow answer, the reconciler moves."""
    wrong = what_is_wrong(lab)
    checks = {name: {"ok": text is None, "message": text} for name, text in wrong.items()}
    away = [f"{name}: {text}" for name, text in wrong.items() if text is not None]
    if away:
        raise ApiProblem(Code.NOT_READY, "; ".join(away), more={"ready": False, "checks": checks})
    return {"ready": True, "checks": checks}


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {
            "description": "Numbers for Prometheus, in its text format or as OpenMetrics.",
            "content": {"text/plain": {"schema": {"type": "string"}, "example": PROMETHEUS}},
        }
    },
    openapi_extra=OPEN_HERE,
)
def metrics(request: Request, lab: LabDep) -> Response:
    """Requests, jobs, the queue, the reconciler, and what answers, as of now."""
    encode, media_type = choose_encoder(request.headers.get("Accept", ""))
    return Response(encode(lab.instruments.registry), headers={"Content-Type": media_type})
