"""One REST call as a value: what is sent, and how the answer is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from stoplab_api.exchange import NotStoplab

STREAM_TIMEOUT_S = 30.0  # the server says something every 15 s

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and what its answer means."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    params: Mapping[str, Any] = field(default_factory=dict)
    """Those that are None are left out."""
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    safe: bool = False
    """Doing it twice is doing it once, so a lost answer is asked for again."""

    def request(self) -> dict[str, Any]:
        """As httpx takes it."""
        return {
            "method": self.method,
            "url": self.path,
            "params": {name: value for name, value in self.params.items() if value is not None},
            "json": self.json,
            "headers": dict(self.headers),
        }


@dataclass(frozen=True)
class Stream(Generic[T]):
    """A call whose answer is server-sent events; those named ``event`` are handed out."""

    call: Call[Any]
    event: str
    read: Callable[[str], T]

    def request(self, headers: Mapping[str, str]) -> dict[str, Any]:
        """As httpx takes it."""
        made = self.call.request()
        made["params"] |= {"follow": "true"}
        made["headers"] |= headers
        made["timeout"] = STREAM_TIMEOUT_S
        return made


def asked(
    path: str, read: Callable[[httpx.Response], T], params: Mapping[str, Any] | None = None
) -> Call[T]:
    """A GET."""
    return Call("GET", path, read, params=params or {}, safe=True)


def posted(
    path: str, read: Callable[[httpx.Response], T], json: Any = None, **more: Any
) -> Call[T]:
    """A POST."""
    return Call("POST", path, read, json=json, **more)


def segment(text: str) -> str:
    """A part of a path, whatever somebody typed: it names one thing and leads nowhere else."""
    return quote(text or " ", safe="").replace(".", "%2E")


def model(kind: type[M]) -> Callable[[httpx.Response], M]:
    """Reads an answer as a model."""

    def read(answer: httpx.Response) -> M:
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError as error:
            raise NotStoplab(answer) from error

    return read


def document(answer: httpx.Response) -> dict[str, Any]:
    """Reads an answer as a JSON object."""
    try:
        found: dict[str, Any] = answer.json()
    except ValueError as error:
        raise NotStoplab(answer) from error
    return found


def content(answer: httpx.Response) -> bytes:
    """Reads an answer as bytes."""
    return answer.content


def nothing(answer: httpx.Response) -> None:
    """Reads nothing."""
