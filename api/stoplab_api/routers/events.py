"""What happened in the project: who did what, and when."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from stoplab_api.answers import Code, ProjectEventListBody
from stoplab_api.auth import Auditor
from stoplab_api.context import LabDep
from stoplab_api.examples import PROJECT_EVENTS
from stoplab_api.problems import documented
from stoplab_platform.jobs.event_store import EventQuery
from stoplab_platform.jobs.views import event_view

router = APIRouter(prefix="/events", tags=["events"])


@router.get(
    "",
    response_model=ProjectEventListBody,
    responses={
        200: {"content": {"application/json": {"example": PROJECT_EVENTS}}},
        **documented(Code.FORBIDDEN),
    },
)
def list_project_events(
    caller: Auditor,
    lab: LabDep,
    after: Annotated[int, Query(ge=0, lt=2**63, description="`seq` of the last known one.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Most events on the page.")] = 100,
    actor: Annotated[
        str | None, Query(max_length=120, description="Done by this owner or part of the lab.")
    ] = None,
    verb: Annotated[str | None, Query(max_length=40, description="Of this kind.")] = None,
) -> Any:
    """The project's jobs (deleted ones too) and tokens, oldest first; for administrators.

    Events are appended and never changed. Where several replicas write to PostgreSQL one may appear
    a moment after another with a higher number.
    """
    query = EventQuery(caller.project, after=after, limit=limit + 1, actor=actor, verb=verb)
    found = lab.store.project_events(query)
    page = found[:limit]
    return {
        "items": [{**event_view(event), "job_id": event.job_id} for event in page],
        "next_after": page[-1].seq if len(found) > limit else None,
    }
