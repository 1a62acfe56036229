"""Below the client: requests that are repeated where they may be, streams that go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import httpx
from pydantic import ValidationError

from stoplab_api.answers import ProblemBody
from stoplab_platform.errors import StoplabError

PAUSES_S = (0.2, 1.0, 3.0)
"""Between the tries of one call."""
PATIENCE_S = 60.0
"""How long a stream, or a wait, outlives the server's silence."""
LATER = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
"""Answers to what was not done, and may be asked again."""
MOST_PAUSE_S = 10.0
STREAM_TIMEOUT_S = 30.0  # the server says something every 15 s
RETRY_S = 0.5


class ApiError(StoplabError):
    """The server refused; ``problem`` says why, ``status`` is the HTTP status."""

    def __init__(self, problem: ProblemBody) -> None:
        self.problem, self.status, self.code = problem, problem.status, problem.code
        lines = [f"{problem.title}: {problem.detail}"]
        lines += [f"  {error.pointer}: {error.message}" for error in problem.errors]
        super().__init__("\n".join(lines))


class Unreachable(StoplabError):
    """No answer from the server, after every try that was allowed."""


@dataclass(frozen=True)
class StreamEvent:
    """One server-sent event."""

    name: str
    data: str
    id: str | None


class Transport:
    """One server and one token."""

    def __init__(self, url: str, token: str | None, timeout_s: float) -> None:
        self._url = url.rstrip("/")
        self._stream_timeout = httpx.Timeout(timeout_s, read=STREAM_TIMEOUT_S)
        self._http = httpx.Client(
            base_url=self._url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=timeout_s,
            trust_env=not _is_loopback(httpx.URL(url).host),
        )

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def get(self, path: str, params: Mapping[str, Any] | None = None) -> httpx.Response:
        """A read; parameters that are None are left out."""
        return self.ask("GET", path, params=_given(params or {}), safe=True)

    def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        headers: Mapping[str, str] | None = None,
        safe: bool = False,
    ) -> httpx.Response:
        """One call. ``safe``: doing it twice is doing it once, so a lost answer is asked again.

        Without it only what surely never reached the server's work is repeated.
        """
        request = self._http.build_request(
            method, path, params=params, json=json, headers=dict(headers or {})
        )
        for pause in PAUSES_S:
            try:
                answer = self._http.send(request)
            except httpx.TransportError as error:
                if not safe and not isinstance(error, httpx.ConnectError):
                    raise self._unreachable(error) from error
            else:
                if answer.status_code not in LATER:
                    return checked(answer)
                pause = max(pause, _asked_pause_s(answer))
            time.sleep(pause)
        try:
            return checked(self._http.send(request))
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def text(self, path: str, params: Mapping[str, Any]) -> Iterator[str]:
        """A body of text as it arrives."""
        try:
            with self._http.stream("GET", path, params=_given(params)) as answer:
                if answer.is_error:
                    answer.read()
                yield from checked(answer).iter_text()
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def events(self, path: str, params: Mapping[str, Any]) -> Iterator[StreamEvent]:
        """Follow a stream to its `end` event; a broken line is taken up where it broke."""
        last_id: str | None = None
        broken_at: float | None = None
        while True:
            try:
                for event in self._stream(path, params, last_id):
                    broken_at = None
                    if event.name == "end":
                        return
                    if event.id is not None:
                        last_id = event.id
                        yield event
            except (httpx.TransportError, ApiError) as error:
                now = time.monotonic()
                broken_at = broken_at or now
                if now - broken_at > PATIENCE_S or not _passes(error):
                    raise self._told(error) from error
            time.sleep(RETRY_S)

    def patiently(self, attempt: Callable[[], None], progress: Callable[[], int]) -> None:
        """Call ``attempt`` until it comes through; silence counts from the last ``progress``."""
        broken_at, had = None, progress()
        while True:
            try:
                return attempt()
            except (httpx.TransportError, ApiError) as error:
                now = time.monotonic()
                broken_at = now if broken_at is None or progress() != had else broken_at
                had = progress()
                if now - broken_at > PATIENCE_S or not _passes(error):
                    raise self._told(error) from error
            time.sleep(RETRY_S)

    @contextmanager
    def body(self, path: str, headers: Mapping[str, str] | None = None) -> Iterator[httpx.Response]:
        """An answer whose body is still to come; raises httpx.TransportError as it is."""
        with self._http.stream("GET", path, headers=dict(headers or {})) as answer:
            if answer.is_error:
                answer.read()
            yield checked(answer)

    def _stream(
        self, path: str, params: Mapping[str, Any], last_id: str | None
    ) -> Iterator[StreamEvent]:
        headers = {"Accept": "text/event-stream"}
        if last_id is not None:
            headers["Last-Event-ID"] = last_id
        with self._http.stream(
            "GET",
            path,
            params={**_given(params), "follow": "true"},
            headers=headers,
            timeout=self._stream_timeout,
        ) as answer:
            if answer.is_error:
                answer.read()
            checked(answer)
            yield StreamEvent("open", "", None)
            yield from parse_events(answer.iter_bytes())

    def _told(self, error: httpx.TransportError | ApiError) -> StoplabError:
        return error if isinstance(error, ApiError) else self._unreachable(error)

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        return Unreachable(f"{self._url} does not answer: {str(error) or type(error).__name__}")


def checked(answer: httpx.Response) -> httpx.Response:
    """The answer, if it is none of a refusal."""
    if not answer.is_error:
        return answer
    try:
        problem = ProblemBody.model_validate_json(answer.content)
    except ValidationError:
        # Somebody between us and the server answered.
        problem = ProblemBody(
            type="about:blank",
            title=answer.reason_phrase or "refused",
            status=answer.status_code,
            detail=answer.text[:500],
            instance=answer.request.url.path,
            code="unknown",
            request_id=answer.headers.get("X-Request-ID", ""),
        )
    raise ApiError(problem)


def parse_events(blocks: Iterator[bytes]) -> Iterator[StreamEvent]:
    """Server-sent events from bytes (WHATWG HTML, section 9.2.6), comments left out.

    Not by lines of text: a log may hold any of the characters that Python breaks lines at.
    """
    fields: dict[str, list[str]] = {}
    for line in _lines(blocks):
        if line:
            name, _, value = line.partition(":")
            fields.setdefault(name, []).append(value.removeprefix(" "))
            continue
        if "data" in fields:
            last = {name: values[-1] for name, values in fields.items()}
            data = "\n".join(fields["data"])
            yield StreamEvent(last.get("event", "message"), data, last.get("id"))
        fields = {}


def _lines(blocks: Iterator[bytes]) -> Iterator[str]:
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        yield from (line.removesuffix(b"\r").decode(errors="replace") for line in whole)


def _asked_pause_s(answer: httpx.Response) -> float:
    """What a limit on the rate asks for. (Of a part that is away nobody knows.)"""
    asked = answer.headers.get("Retry-After", "")
    limited = answer.status_code == httpx.codes.TOO_MANY_REQUESTS and asked.isdecimal()
    return min(float(asked), MOST_PAUSE_S) if limited else 0.0


def _passes(error: httpx.TransportError | ApiError) -> bool:
    """Whether it may be better in a moment."""
    return not isinstance(error, ApiError) or error.status in LATER


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _is_loopback(host: str) -> bool:
    """Whether a proxy would be of no use."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
