"""Around every request: its id, one line in the log, and its part of the metrics."""

from __future__ import annotations

import logging
import re
from time import perf_counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from ulid import ULID

from stoplab_api.instruments import Instruments
from stoplab_platform import logs

HEADER = "X-Request-ID"
PREFIX = "/v1"
_GOOD_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
_log = logging.getLogger("stoplab.api")


class RequestLog:
    """Gives each request an id (the client's own where it fits) and tells how it ended."""

    def __init__(self, app: ASGIApp, instruments: Instruments) -> None:
        self._app, self._instruments = app, instruments

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        # Not undone: the request has a context of its own, and the server may log after us.
        logs.bind(request_id=request_id)
        seen = _Answer(request_id, self._instruments)

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.begins(message)
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        finally:
            seen.ends(scope)


class _Answer:
    """What is seen of one answer."""

    def __init__(self, request_id: str, instruments: Instruments) -> None:
        self._request_id, self._instruments = request_id, instruments
        self._began, self._status, self._is_stream = perf_counter(), 500, False

    def begins(self, message: Message) -> None:
        headers = MutableHeaders(scope=message)
        headers[HEADER] = self._request_id
        self._status = message["status"]
        if headers.get("Idempotency-Replayed") == "true":
            self._instruments.replayed()
        if headers.get("Content-Type", "").startswith("text/event-stream"):
            self._is_stream = True
            self._instruments.stream_opened()

    def ends(self, scope: Scope) -> None:
        seconds = perf_counter() - self._began
        if self._is_stream:
            self._instruments.stream_closed()
        self._instruments.answered(
            scope["method"], _route(scope), self._status, None if self._is_stream else seconds
        )
        fields = {
            "method": scope["method"],
            # As it was sent: still percent-encoded, so it cannot break the line.
            "path": scope["raw_path"].decode("latin-1"),
            "status": self._status,
            "ms": round(seconds * 1e3, 1),
        }
        _log.info("answered", extra={"fields": fields})


def _route(scope: Scope) -> str:
    """The template of the path, so that ids make no series of their own."""
    route = scope.get("route")
    if route is None:
        return "unmatched"
    path: str = route.path
    below = scope["path"].startswith(f"{PREFIX}/") and not path.startswith(f"{PREFIX}/")
    return PREFIX + path if below else path


def _request_id(headers: Headers) -> str:
    given = headers.get(HEADER, "")
    return given if _GOOD_ID.fullmatch(given) else f"r_{str(ULID()).lower()}"
