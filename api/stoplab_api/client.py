"""The REST client, typed: `Client` blocks, `AsyncClient` is for asyncio. Needs no server code.

Every call that may be repeated is repeated when the server or the line is away for a moment: a
submit too, because it carries an idempotency key of its own making.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import anyio

from stoplab_api import calls
from stoplab_api.answers import EventBody
from stoplab_api.bodies import JobBody
from stoplab_api.call import Call
from stoplab_api.calls import AnySpecData
from stoplab_api.exchange import ApiError, Unreachable, Waiting
from stoplab_api.transport import AsyncTransport, Transport

__all__ = ["AnySpecData", "ApiError", "AsyncClient", "Client", "Unreachable"]

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M")


def _blocking(make: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    """A method that makes a call and waits for its answer."""

    @functools.wraps(make)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._api.send(make(*args, **kwargs))

    return _of_instance(method, make)


def _awaited(
    make: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """The same as a coroutine."""

    @functools.wraps(make)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._api.send(make(*args, **kwargs))

    return _of_instance(method, make)


def _of_instance(method: M, make: Callable[..., Call[Any]]) -> M:
    """Gives a method its definition's parameters after `self`, for who looks with `inspect`."""
    made = inspect.signature(make)
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    told = made.replace(
        parameters=[first, *made.parameters.values()], return_annotation=inspect.Signature.empty
    )
    method.__signature__ = told  # type: ignore[attr-defined]
    return method


class Client:
    """A project's jobs, as one token sees them. Raises ApiError and Unreachable."""

    def __init__(
        self, url: str, token: str | None, *, timeout_s: float = 30.0, retries: bool = True
    ) -> None:
        self._api = Transport(url, token, timeout_s, retries)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the connections back."""
        self._api.close()

    submit = _blocking(calls.submit)
    dry_run = _blocking(calls.dry_run)
    get = _blocking(calls.get)
    list = _blocking(calls.list_jobs)
    change = _blocking(calls.change)
    cancel = _blocking(calls.cancel)
    pause = _blocking(calls.pause)
    resume = _blocking(calls.resume)
    retry = _blocking(calls.retry)
    extend = _blocking(calls.extend)
    delete = _blocking(calls.delete)
    events = _blocking(calls.events)
    project_events = _blocking(calls.project_events)
    estimate = _blocking(calls.estimate)
    hindsight = _blocking(calls.hindsight)
    metrics = _blocking(calls.metrics)
    series = _blocking(calls.series)
    artifacts = _blocking(calls.artifacts)
    trials = _blocking(calls.trials)
    trial_table = _blocking(calls.trial_table)
    comparison = _blocking(calls.comparison)
    surface = _blocking(calls.surface)
    report = _blocking(calls.report)
    me = _blocking(calls.me)
    cluster = _blocking(calls.cluster)
    schema = _blocking(calls.schema)
    tokens = _blocking(calls.tokens)
    create_token = _blocking(calls.create_token)
    rotate_token = _blocking(calls.rotate_token)
    revoke_token = _blocking(calls.revoke_token)

    def logs(
        self,
        job_id: str,
        *,
        follow: bool = False,
        rank: int | None = None,
        tail: int | None = None,
    ) -> Iterator[str]:
        """What the job wrote, piece by piece; with ``follow`` until it ends, over lost lines."""
        stream = calls.logs(job_id, rank=rank, tail=tail)
        return self._api.follow(stream) if follow else self._api.text(stream.call)

    def follow_events(self, job_id: str) -> Iterator[EventBody]:
        """The job's history as it happens, until the job ends."""
        return self._api.follow(calls.follow_events(job_id))

    def download(self, job_id: str, path: str, to: Path) -> Path:
        """Fetch an artifact into the file (or folder) ``to``; taken up where it broke.

        The file's own path comes back.
        """
        return self._api.fetch(calls.artifact(job_id, path), calls.target(path, to))

    def wait(
        self,
        job_id: str,
        timeout: float | None = None,
        *,
        poll_s: float = 0.5,
        seen: Callable[[JobBody], None] | None = None,
    ) -> JobBody:
        """The job once it has ended; TimeoutError after ``timeout`` seconds.

        ``seen`` is told the job at every look. A server that is away is waited for.
        """
        waiting = Waiting(job_id, timeout)
        while True:
            try:
                job = self.get(job_id)
            except (Unreachable, ApiError) as error:
                waiting.missed(error)
            else:
                if waiting.saw(job, seen):
                    return job
            time.sleep(poll_s)


class AsyncClient:
    """The same calls for asyncio: each is awaited, each stream is an `async for`."""

    def __init__(
        self, url: str, token: str | None, *, timeout_s: float = 30.0, retries: bool = True
    ) -> None:
        self._api = AsyncTransport(url, token, timeout_s, retries)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connections back."""
        await self._api.close()

    submit = _awaited(calls.submit)
    dry_run = _awaited(calls.dry_run)
    get = _awaited(calls.get)
    list = _awaited(calls.list_jobs)
    change = _awaited(calls.change)
    cancel = _awaited(calls.cancel)
    pause = _awaited(calls.pause)
    resume = _awaited(calls.resume)
    retry = _awaited(calls.retry)
    extend = _awaited(calls.extend)
    delete = _awaited(calls.delete)
    events = _awaited(calls.events)
    project_events = _awaited(calls.project_events)
    estimate = _awaited(calls.estimate)
    hindsight = _awaited(calls.hindsight)
    metrics = _awaited(calls.metrics)
    series = _awaited(calls.series)
    artifacts = _awaited(calls.artifacts)
    trials = _awaited(calls.trials)
    trial_table = _awaited(calls.trial_table)
    comparison = _awaited(calls.comparison)
    surface = _awaited(calls.surface)
    report = _awaited(calls.report)
    me = _awaited(calls.me)
    cluster = _awaited(calls.cluster)
    schema = _awaited(calls.schema)
    tokens = _awaited(calls.tokens)
    create_token = _awaited(calls.create_token)
    rotate_token = _awaited(calls.rotate_token)
    revoke_token = _awaited(calls.revoke_token)

    def logs(
        self,
        job_id: str,
        *,
        follow: bool = False,
        rank: int | None = None,
        tail: int | None = None,
    ) -> AsyncIterator[str]:
        """What the job wrote, piece by piece; with ``follow`` until it ends, over lost lines."""
        stream = calls.logs(job_id, rank=rank, tail=tail)
        return self._api.follow(stream) if follow else self._api.text(stream.call)

    def follow_events(self, job_id: str) -> AsyncIterator[EventBody]:
        """The job's history as it happens, until the job ends."""
        return self._api.follow(calls.follow_events(job_id))

    async def download(self, job_id: str, path: str, to: Path) -> Path:
        """Fetch an artifact into the file (or folder) ``to``; taken up where it broke.

        The file's own path comes back.
        """
        return await self._api.fetch(calls.artifact(job_id, path), calls.target(path, to))

    async def wait(
        self,
        job_id: str,
        timeout: float | None = None,
        *,
        poll_s: float = 0.5,
        seen: Callable[[JobBody], None] | None = None,
    ) -> JobBody:
        """The job once it has ended; TimeoutError after ``timeout`` seconds.

        ``seen`` is told the job at every look. A server that is away is waited for.
        """
        waiting = Waiting(job_id, timeout)
        while True:
            try:
                job = await self.get(job_id)
            except (Unreachable, ApiError) as error:
                waiting.missed(error)
            else:
                if waiting.saw(job, seen):
                    return job
            await anyio.sleep(poll_s)
