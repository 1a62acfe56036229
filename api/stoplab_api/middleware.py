"""Around every request: its id, and one line in the log."""

from __future__ import annotations

import logging
import re
from time import perf_counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from ulid import ULID

HEADER = "X-Request-ID"
_GOOD_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)
_log = logging.getLogger("stoplab.api")


class RequestLog:
    """Gives each request an id (the client's own where it fits) and logs how it ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        started, status = perf_counter(), 500

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_marked)
        finally:
            # The path as it was sent: still percent-encoded, so it cannot break the line.
            _log.info(
                "method=%s path=%s status=%d ms=%.1f request_id=%s",
                scope["method"],
                scope["raw_path"].decode("latin-1"),
                status,
                (perf_counter() - started) * 1e3,
                request_id,
            )


def _request_id(headers: Headers) -> str:
    given = headers.get(HEADER, "")
    return given if _GOOD_ID.fullmatch(given) else f"r_{str(ULID()).lower()}"
