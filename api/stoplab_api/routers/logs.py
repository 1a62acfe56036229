"""What a job wrote and what happened to it: as a whole, or as a stream that ends with the job."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query
from fastapi.responses import Response, StreamingResponse

from stoplab_api import logs, sse
from stoplab_api.answers import Code, EventListBody
from stoplab_api.auth import Caller
from stoplab_api.context import Lab, LabDep
from stoplab_api.examples import EVENT_STREAM, EVENTS, LOG_STREAM, LOG_TEXT
from stoplab_api.problems import documented
from stoplab_platform.errors import NotFound, StoreUnavailable
from stoplab_platform.jobs.models import Event, Job, Principal
from stoplab_platform.jobs.states import TERMINAL
from stoplab_platform.jobs.views import event_view

POLL_S = 0.25
TOKEN_S = 5.0
"""How long a stream goes on at most when its token has ended."""

router = APIRouter(tags=["logs"])

Follow = Annotated[bool, Query(description="Stream as server-sent events until the job ends.")]
LastEventId = Annotated[
    str | None,
    Header(
        pattern=r"^[0-9]{1,18}$",
        description="With `follow`: go on after this event, as a client that lost the line does.",
    ),
]


@router.get(
    "/jobs/{job_id}/logs",
    response_class=Response,
    responses={
        200: {
            "description": "The bytes as they were written; with `follow` a stream in which one "
            "`log` event is a chunk of whole lines (a longer line is split at 64 KiB), its id "
            "the offset in bytes after it, and `end` the last event.",
            "content": {
                "text/plain": {"schema": {"type": "string"}, "example": LOG_TEXT},
                "text/event-stream": {"example": LOG_STREAM},
            },
        },
        **documented(Code.NOT_FOUND),
    },
)
def read_logs(
    caller: Caller,
    lab: LabDep,
    job_id: str,
    rank: Annotated[int | None, Query(ge=0, le=4096, description="One worker's log.")] = None,
    tail: Annotated[
        int | None, Query(ge=0, lt=2**53, description="Only the last so many lines.")
    ] = None,
    follow: Follow = False,
    last_event_id: LastEventId = None,
) -> Response:
    """What the job's driver, or one of its workers, wrote over all attempts."""
    job = lab.jobs.get(caller, job_id)
    folder = lab.settings.folders.job(job.id)
    path = folder.driver_log if rank is None else folder.rank_log(rank)
    start = 0 if tail is None else logs.tail_start(path, tail)
    if follow:
        start = int(last_event_id or start)
        return sse.stream(_follow_log(_Watch(lab, job.id, caller), path, start))
    end = logs.size(path)
    return StreamingResponse(
        logs.blocks(path, start, end),
        media_type="text/plain; charset=utf-8",
        headers={"Content-Length": str(end - start), "Cache-Control": "no-store"},
    )


@router.get(
    "/jobs/{job_id}/events",
    response_model=EventListBody,
    responses={
        200: {
            "description": "The history; with `follow` a stream of `event` events, the id being "
            "the event's `seq`, and `end` the last.",
            "content": {
                "application/json": {"example": EVENTS},
                "text/event-stream": {"example": EVENT_STREAM},
            },
        },
        **documented(Code.NOT_FOUND),
    },
)
def list_events(
    caller: Caller,
    lab: LabDep,
    job_id: str,
    follow: Follow = False,
    last_event_id: LastEventId = None,
) -> Any:
    """What happened to the job, oldest first."""
    job = lab.jobs.get(caller, job_id)
    after = int(last_event_id or 0)
    if follow:
        return sse.stream(_follow_events(_Watch(lab, job.id, caller), after))
    return {"items": [event_view(event) for event in lab.store.events(job.id, after)]}


class _Watch:
    """What a stream follows, and by which token; it ends with either, and with the server."""

    def __init__(self, lab: Lab, job_id: str, caller: Principal) -> None:
        self.lab, self.job_id = lab, job_id
        self._token_id, self._checked_at = caller.token_id, monotonic()

    @property
    def closing(self) -> bool:
        """Whether the server stops."""
        return self.lab.closing.is_set()

    def may_go_on(self) -> bool:
        """Whether the token is still good; asked of the store now and then."""
        if self._token_id is None or monotonic() - self._checked_at < TOKEN_S:
            return True
        self._checked_at = monotonic()
        with suppress(StoreUnavailable):
            return self.lab.store.lasts(self._token_id)
        return True

    def ended(self) -> str | None:
        """The final state; None while the job lives, or while nobody can tell."""
        try:
            job: Job = self.lab.store.get(self.job_id)
        except NotFound:
            return "DELETED"
        except StoreUnavailable:
            return None
        return job.state if job.state in TERMINAL else None

    def events(self, after: int) -> Sequence[Event]:
        """The job's events behind that one, as far as the store answers."""
        with suppress(StoreUnavailable):
            return self.lab.store.events(self.job_id, after)
        return ()


async def _follow_log(watch: _Watch, path: Path, offset: int) -> AsyncIterator[sse.Event | None]:
    while not watch.closing and await run_sync(watch.may_go_on):
        # Asked before the file is read: what a finished job wrote is then read to its end.
        ended = await run_sync(watch.ended)
        while chunk := await run_sync(_next_chunk, path, offset, ended is not None):
            offset = chunk.end
            # Waits here while the client does not read: one chunk is held, and no thread.
            yield sse.Event("log", chunk.text, str(offset))
            if watch.closing:
                return
        if ended is not None:
            yield _end(ended, str(offset))
            return
        yield None
        await anyio.sleep(POLL_S)


async def _follow_events(watch: _Watch, after: int) -> AsyncIterator[sse.Event | None]:
    while not watch.closing and await run_sync(watch.may_go_on):
        ended = await run_sync(watch.ended)
        for event in await run_sync(watch.events, after):
            after = event.seq
            yield sse.Event("event", json.dumps(event_view(event)), str(after))
        if ended is not None:
            yield _end(ended, str(after))
            return
        yield None
        await anyio.sleep(POLL_S)


def _next_chunk(path: Path, offset: int, final: bool) -> logs.Chunk | None:
    return logs.next_chunk(path, offset, final=final)


def _end(state: str, position: str) -> sse.Event:
    return sse.Event("end", json.dumps({"state": state}), position)
