"""Server-sent events (WHATWG HTML, section 9.2): one `StreamingResponse`, never silent for long."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from time import monotonic

from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event

HEARTBEAT_S = 10.0
"""Silence after which a comment is sent; the contract says 15 s at most."""


@dataclass(frozen=True)
class Event:
    """One event; carriage returns in ``data`` arrive as line ends, as the format has it."""

    name: str
    data: str
    id: str


def stream(events: AsyncIterator[Event | None]) -> StreamingResponse:
    """Send ``events`` as they come; None means "nothing new", said at least every second."""
    return StreamingResponse(
        _encoded(events),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


async def _encoded(events: AsyncIterator[Event | None]) -> AsyncIterator[bytes]:
    # Said at once, so that clients see the stream open before anything happens.
    yield format_sse_event(comment="stream", retry=1000)
    last = monotonic()
    async for event in events:
        if event is not None:
            yield format_sse_event(event=event.name, data_str=event.data, id=event.id)
            last = monotonic()
        elif monotonic() - last >= HEARTBEAT_S:
            yield format_sse_event(comment="heartbeat")
            last = monotonic()
