"""Below the clients: the two that send `calls`, one blocking, one for asyncio."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import anyio
import httpx

from stoplab_api import exchange
from stoplab_api.call import Call, Stream
from stoplab_api.downloads import BLOCK, Download
from stoplab_api.exchange import ApiError, Following, Tries, Unreachable, checked
from stoplab_platform.errors import SettingsError

_TOKEN = re.compile(r"[\x21-\x7e]+")

T = TypeVar("T")


class Transport:
    """One server and one token."""

    def __init__(self, url: str, token: str | None, timeout_s: float, retries: bool = True) -> None:
        self._url, self._retries = url.rstrip("/"), retries
        self._http = httpx.Client(**_options(self._url, token, timeout_s))

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def send(self, call: Call[T]) -> T:
        """What the call's answer says, after as many tries as it takes. ApiError, Unreachable."""
        request = self._http.build_request(**call.request())
        tries = Tries(self._url, safe=call.safe, retries=self._retries)
        while True:
            try:
                answer = self._http.send(request)
            except httpx.TransportError as error:
                pause = tries.after_silence(error)
            else:
                again = tries.after_answer(answer)
                if again is None:
                    return call.read(checked(answer))
                pause = again
            time.sleep(pause)

    def text(self, call: Call[Any]) -> Iterator[str]:
        """A body of text as it arrives."""
        try:
            with self._http.stream(**call.request()) as answer:
                if not answer.is_success:
                    answer.read()
                yield from checked(answer).iter_text()
        except httpx.TransportError as error:
            raise Unreachable(self._url, error) from error

    def fetch(self, path: str, to: Path) -> Path:
        """An answer's body as the file ``to``; a broken line is taken up where it broke."""
        file = Download(self._url, path, to)
        while not file.whole:
            try:
                with self._http.stream(**file.request()) as answer:
                    if not answer.is_success:
                        answer.read()
                    if file.opened(checked(answer)):
                        for block in answer.iter_bytes(BLOCK):
                            file.feed(block)
            except (httpx.TransportError, ApiError) as error:
                file.broke(error)
                time.sleep(exchange.RETRY_S)
        return file.finish()

    def follow(self, stream: Stream[T]) -> Iterator[T]:
        """A stream to its end; a broken line is taken up where it broke."""
        following = Following(self._url)
        while True:
            try:
                with self._http.stream(**stream.request(following.headers())) as answer:
                    if not answer.is_success:
                        answer.read()
                    checked(answer)
                    following.opened()
                    for block in answer.iter_bytes():
                        for event in following.feed(block):
                            if event.name == stream.event:
                                yield stream.read(event.data)
                        if following.ended:
                            return
            except (httpx.TransportError, ApiError) as error:
                following.broke(error)
            time.sleep(exchange.RETRY_S)


class AsyncTransport:
    """The same for asyncio."""

    def __init__(self, url: str, token: str | None, timeout_s: float, retries: bool = True) -> None:
        self._url, self._retries = url.rstrip("/"), retries
        self._http = httpx.AsyncClient(**_options(self._url, token, timeout_s))

    async def close(self) -> None:
        """Give the connections back."""
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        """What the call's answer says, after as many tries as it takes. ApiError, Unreachable."""
        request = self._http.build_request(**call.request())
        tries = Tries(self._url, safe=call.safe, retries=self._retries)
        while True:
            try:
                answer = await self._http.send(request)
            except httpx.TransportError as error:
                pause = tries.after_silence(error)
            else:
                again = tries.after_answer(answer)
                if again is None:
                    return call.read(checked(answer))
                pause = again
            await anyio.sleep(pause)

    async def text(self, call: Call[Any]) -> AsyncIterator[str]:
        """A body of text as it arrives."""
        try:
            async with self._http.stream(**call.request()) as answer:
                if not answer.is_success:
                    await answer.aread()
                async for piece in checked(answer).aiter_text():
                    yield piece
        except httpx.TransportError as error:
            raise Unreachable(self._url, error) from error

    async def fetch(self, path: str, to: Path) -> Path:
        """An answer's body as the file ``to``; a broken line is taken up where it broke."""
        file = Download(self._url, path, to)
        while not file.whole:
            try:
                async with self._http.stream(**file.request()) as answer:
                    if not answer.is_success:
                        await answer.aread()
                    if file.opened(checked(answer)):
                        async for block in answer.aiter_bytes(BLOCK):
                            file.feed(block)
            except (httpx.TransportError, ApiError) as error:
                file.broke(error)
                await anyio.sleep(exchange.RETRY_S)
        return file.finish()

    async def follow(self, stream: Stream[T]) -> AsyncIterator[T]:
        """A stream to its end; a broken line is taken up where it broke."""
        following = Following(self._url)
        while True:
            try:
                async with self._http.stream(**stream.request(following.headers())) as answer:
                    if not answer.is_success:
                        await answer.aread()
                    checked(answer)
                    following.opened()
                    async for block in answer.aiter_bytes():
                        for event in following.feed(block):
                            if event.name == stream.event:
                                yield stream.read(event.data)
                        if following.ended:
                            return
            except (httpx.TransportError, ApiError) as error:
                following.broke(error)
            await anyio.sleep(exchange.RETRY_S)


def is_loopback(host: str) -> bool:
    """Whether a proxy would be of no use."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _options(url: str, token: str | None, timeout_s: float) -> dict[str, Any]:
    """How both kinds of HTTP clients are made; SettingsError where they cannot be."""
    if token is not None and not _TOKEN.fullmatch(token):
        raise SettingsError("the token is none: it is empty, or has spaces or odd characters in it")
    return {
        "base_url": url,
        "headers": {"Authorization": f"Bearer {token}"} if token else {},
        "timeout": timeout_s,
        "trust_env": not is_loopback(_host(url)),
    }


def _host(url: str) -> str:
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise SettingsError(f"{url!r} is no server's address; one looks like http://127.0.0.1:8800")
    return parsed.host
