"""What is decided between requests and answers, without I/O: refusals, patience, event streams."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from pydantic import ValidationError

from stoplab_api.answers import ProblemBody
from stoplab_api.bodies import JobBody
from stoplab_platform.errors import StoplabError
from stoplab_platform.jobs.states import TERMINAL

PAUSES_S = (0.2, 1.0, 3.0)
"""Between the tries of one call, unless the server names a time."""
PATIENCE_S = 60.0
"""How long a call, a stream or a wait outlives the server's silence."""
RETRY_S = 0.5
"""Before a broken stream is taken up."""
BUSY = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)
"""Answers that say "later": nothing was done."""
_random = random.SystemRandom()  # not the generator that specs seed


class ApiError(StoplabError):
    """The server refused; ``problem`` says why, ``status`` is the HTTP status."""

    def __init__(self, problem: ProblemBody, retry_after_s: float | None = None) -> None:
        self.problem, self.status, self.code = problem, problem.status, problem.code
        self.retry_after_s = retry_after_s
        lines = [f"{problem.title}: {problem.detail}"]
        lines += [f"  {error.pointer}: {error.message}" for error in problem.errors]
        super().__init__("\n".join(lines))


class Unreachable(StoplabError):
    """No answer from the server, after every try that was allowed."""

    def __init__(self, url: str, error: httpx.TransportError) -> None:
        super().__init__(f"{url} does not answer: {str(error) or type(error).__name__}")


class NotStoplab(StoplabError):
    """Something answered, but no server of ours."""

    def __init__(self, answer: httpx.Response) -> None:
        super().__init__(
            f"{answer.request.url} answered with {answer.status_code}, but not as a stoplab server "
            "of this version does"
        )


def checked(answer: httpx.Response) -> httpx.Response:
    """The answer (read whole), if it is none of a refusal."""
    if answer.is_success:
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
    raise ApiError(problem, retry_after_s(answer))


def retry_after_s(answer: httpx.Response) -> float | None:
    """What `Retry-After` says (RFC 9110, 10.2.3), in seconds or as a date; None where nothing."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


class Tries:
    """How often one call is made: told each outcome, it gives the pause before the next try."""

    def __init__(self, url: str, *, safe: bool, retries: bool = True) -> None:
        self._url, self._safe = url, safe
        self._pauses = iter(PAUSES_S if retries else ())
        self._patience_s = PATIENCE_S

    def after_answer(self, answer: httpx.Response) -> float | None:
        """Seconds until the next try; None: this answer stands."""
        if answer.status_code not in BUSY:
            return None
        pause = self._pause()
        if pause is None:
            return None
        pause = max(pause, retry_after_s(answer) or 0.0)
        self._patience_s -= pause
        return pause if self._patience_s >= 0 else None

    def after_silence(self, error: httpx.TransportError) -> float:
        """Seconds until the next try; raises Unreachable when there is none.

        What may not be done twice is repeated only where it surely never reached the server.
        """
        pause = self._pause() if self._safe or isinstance(error, httpx.ConnectError) else None
        if pause is None:
            raise Unreachable(self._url, error) from error
        return pause

    def _pause(self) -> float | None:
        """Never the same for two clients that were refused at once."""
        pause = next(self._pauses, None)
        return None if pause is None else pause * _random.uniform(0.75, 1.25)


class Waiting:
    """A wait for a job's end: told each look, it says whether it is over."""

    def __init__(self, job_id: str, timeout_s: float | None) -> None:
        self._job_id, self._timeout_s = job_id, timeout_s
        self._began = self._heard = time.monotonic()

    def saw(self, job: JobBody, seen: Callable[[JobBody], None] | None) -> bool:
        """Whether the job has ended; TimeoutError when it was to end by now."""
        self._heard = time.monotonic()
        if seen is not None:
            seen(job)
        return job.status.state in TERMINAL or self._goes_on()

    def missed(self, error: Unreachable | ApiError) -> None:
        """No look was had: raises the error once patience is over, or where it cannot pass."""
        passes = isinstance(error, Unreachable) or error.status in BUSY
        if not passes or time.monotonic() - self._heard > PATIENCE_S:
            raise error
        self._goes_on()

    def _goes_on(self) -> bool:
        limit = self._timeout_s
        if limit is not None and time.monotonic() - self._began > limit:
            raise TimeoutError(f"{self._job_id} has not ended within {limit} s")
        return False


@dataclass(frozen=True)
class StreamEvent:
    """One server-sent event."""

    name: str
    data: str
    id: str | None


class Patience:
    """What outlives lost lines, and a server that is busy, for a while."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._broken_at: float | None = None

    def heard(self) -> None:
        """The server answers; its silence is counted anew."""
        self._broken_at = None

    def broke(self, error: httpx.TransportError | ApiError) -> None:
        """Note that the line is lost; raises what it means once that lasts, or cannot pass."""
        now = time.monotonic()
        self._broken_at = self._broken_at or now
        if isinstance(error, ApiError):
            if error.status not in BUSY or now - self._broken_at > PATIENCE_S:
                raise error
        elif now - self._broken_at > PATIENCE_S:
            raise Unreachable(self._url, error) from error


class Following(Patience):
    """A stream that is followed to its `end` event, over lost lines."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._events = EventReader()
        self._last_id: str | None = None
        self.ended = False

    def headers(self) -> dict[str, str]:
        """For the next request: a stream goes on after the last event that came whole."""
        resumed = {} if self._last_id is None else {"Last-Event-ID": self._last_id}
        return {"Accept": "text/event-stream", **resumed}

    def opened(self) -> None:
        """The server answers; what the lost line left half-said comes again."""
        self._events = EventReader()
        self.heard()

    def feed(self, block: bytes) -> Iterator[StreamEvent]:
        """The events that a block of bytes completes, up to the end."""
        for event in self._events.feed(block):
            if event.name == "end":
                self.ended = True
                return
            if event.id is not None:
                self._last_id = event.id
                yield event


class EventReader:
    """Server-sent events from bytes (WHATWG HTML, section 9.2.6), comments left out.

    Not by lines of text: a log may hold any of the characters that Python breaks lines at.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._fields: dict[str, list[str]] = {}

    def feed(self, block: bytes) -> Iterator[StreamEvent]:
        """The events that the block completes."""
        *whole, self._rest = (self._rest + block).split(b"\n")
        for line in whole:
            event = self._line(line.removesuffix(b"\r").decode(errors="replace"))
            if event is not None:
                yield event

    def _line(self, line: str) -> StreamEvent | None:
        if line:
            name, _, value = line.partition(":")
            self._fields.setdefault(name, []).append(value.removeprefix(" "))
            return None
        fields, self._fields = self._fields, {}
        if "data" not in fields:
            return None
        last = {name: values[-1] for name, values in fields.items()}
        data = "\n".join(fields["data"])
        return StreamEvent(last.get("event", "message"), data, last.get("id"))
