"""About the lab itself: who you are, schemas, capacity, kinds of problems."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from fastapi import APIRouter

from stoplab_api.answers import ClusterBody, Code, MeBody
from stoplab_api.auth import Caller, Known
from stoplab_api.context import Lab, LabDep
from stoplab_api.examples import CLUSTER, ME
from stoplab_api.problems import KINDS as PROBLEM_KINDS
from stoplab_api.problems import documented
from stoplab_platform.admission import capacity, demand
from stoplab_platform.errors import SpecError
from stoplab_platform.extend import limited
from stoplab_platform.jobs.models import Job
from stoplab_platform.jobs.states import ACTIVE
from stoplab_platform.resources import Resources
from stoplab_platform.specs import KINDS, parse_spec
from stoplab_platform.specs.schema import schema_of

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
    return {"$schema": DRAFT, **schema_of(KINDS[kind])}


@router.get(
    "/cluster",
    response_model=ClusterBody,
    responses={
        200: {"content": {"application/json": {"example": CLUSTER}}},
        **documented(Code.CLUSTER_UNAVAILABLE),
    },
)
def show_cluster(caller: Caller, lab: LabDep) -> Any:
    """What jobs may use, what they and your project have reserved, whether the cluster answers."""
    declared = capacity(lab.settings)
    jobs = lab.store.unfinished()
    reserved, held, holding = Resources(), Resources(), 0
    for job in (job for job in jobs if job.state in ACTIVE):
        needs = _reserved(lab, job)
        reserved += needs
        if job.project == caller.project:
            held, holding = held + needs, holding + 1
    return {
        "capacity": {"cpus": declared.cpus, "gpus": declared.gpus},
        "reserved": {"cpus": reserved.cpus, "gpus": reserved.gpus},
        "jobs": dict(sorted(Counter(job.state for job in jobs).items())),
        "runner": {"kind": type(lab.runner).__name__, "alive": lab.runner.alive()},
        "project": {
            "name": caller.project,
            "held": {"cpus": held.cpus, "gpus": held.gpus, "jobs": holding},
            "quota": lab.settings.quota(caller.project).model_dump(),
        },
    }


@open_router.get("/problems/{code}")
def show_problem(code: Code) -> dict[str, Any]:
    """What a problem's `type` stands for."""
    return {"code": code, **PROBLEM_KINDS[code].model_dump()}


def _reserved(lab: Lab, job: Job) -> Resources:
    try:
        spec = limited(parse_spec(job.spec), job.limits)
    except SpecError:
        # A spec of an older release may no longer be one; it then reserves nothing we know of.
        return Resources()
    return demand(spec, capacity(lab.settings), lab.settings.quota(job.project))
