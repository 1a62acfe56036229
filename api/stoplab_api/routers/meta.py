"""About the lab itself: who you are, schemas, capacity, kinds of problems."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any, Literal

from fastapi import APIRouter

from stoplab_api.answers import ClusterBody, Code, MeBody
from stoplab_api.auth import Known
from stoplab_api.context import LabDep
from stoplab_api.examples import CLUSTER, ME
from stoplab_api.problems import KINDS as PROBLEM_KINDS
from stoplab_api.problems import documented
from stoplab_platform.admission import Resources, capacity, demand
from stoplab_platform.errors import SpecError
from stoplab_platform.extend import limited
from stoplab_platform.jobs.states import ACTIVE
from stoplab_platform.specs import KINDS, parse_spec

DRAFT = "https://json-schema.org/draft/2020-12/schema"

router = APIRouter(tags=["lab"])
open_router = APIRouter(tags=["lab"])
"""Pages that need no token."""


@router.get(
    "/me",
    response_model=MeBody,
    responses={200: {"content": {"application/json": {"example": ME}}}},
)
def show_me(caller: Known) -> Any:
    """Whom the token speaks for."""
    scopes = None if caller.scopes is None else sorted(caller.scopes)
    who = {"owner": caller.owner, "project": caller.project, "role": caller.role}
    return {**who, "scopes": scopes}


@router.get("/schema/{kind}")
def show_schema(kind: Literal["pretrain", "sweep", "compare", "evaluate"]) -> dict[str, Any]:
    """The JSON schema of a spec: every field with unit, default and source."""
    return {"$schema": DRAFT, **KINDS[kind].model_json_schema()}


@router.get(
    "/cluster",
    response_model=ClusterBody,
    responses={
        200: {"content": {"application/json": {"example": CLUSTER}}},
        **documented(Code.CLUSTER_UNAVAILABLE),
    },
)
def show_cluster(lab: LabDep) -> Any:
    """What jobs may use, what they have reserved, and whether the cluster answers."""
    declared = capacity(lab.settings)
    jobs = lab.store.unfinished()
    reserved = Resources()
    for job in jobs:
        # A spec of an older release may no longer be one; it then reserves nothing we know of.
        with suppress(SpecError):
            if job.state in ACTIVE:
                reserved = reserved + demand(limited(parse_spec(job.spec), job.limits), declared)
    return {
        "capacity": {"cpus": declared.cpus, "gpus": declared.gpus},
        "reserved": {"cpus": reserved.cpus, "gpus": reserved.gpus},
        "jobs": dict(sorted(Counter(job.state for job in jobs).items())),
        "runner": {"kind": type(lab.runner).__name__, "alive": lab.runner.alive()},
    }


@open_router.get("/problems/{code}")
def show_problem(code: Code) -> dict[str, Any]:
    """What a problem's `type` stands for."""
    return {"code": code, **PROBLEM_KINDS[code].model_dump()}
