"""Both REST clients behind one face, so that one contract is tested on each."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

from anyio.from_thread import BlockingPortal, start_blocking_portal

from stoplab_api.client import AsyncClient, Client

Connect = Callable[[str, str | None], AbstractContextManager[Client]]


@contextmanager
def blocking(url: str, token: str | None) -> Iterator[Client]:
    """The blocking client."""
    with Client(url, token) as client:
        yield client


@contextmanager
def driven(url: str, token: str | None) -> Iterator[Client]:
    """The asynchronous client, in an event loop of its own."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(AsyncClient(url, token)) as client,
    ):
        yield cast(Client, Driven(client, portal))


class Driven:
    """Awaits what the client gives; its streams become plain iterators."""

    def __init__(self, client: AsyncClient, portal: BlockingPortal) -> None:
        self._client, self._portal = client, portal

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            found = getattr(self._client, name)(*args, **kwargs)
            if inspect.isawaitable(found):
                return self._portal.call(_awaited, found)
            return self._pieces(found)

        return call

    def _pieces(self, stream: AsyncIterator[Any]) -> Iterator[Any]:
        while True:
            try:
                yield self._portal.call(stream.__anext__)
            except StopAsyncIteration:
                return


async def _awaited(found: Any) -> Any:
    return await found
