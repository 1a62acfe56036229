"""Bytes from and to far away: tried again with growing waits, whole in the end.

Only what may pass is tried again: an answer of 5xx or 429, a slow one, a cut connection. What is
missing or forbidden is told at once. fsspec is imported here alone, and knows the stores.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any, BinaryIO

import aiohttp
import fsspec
from fsspec import AbstractFileSystem
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    stop_when_event_set,
    wait_exponential,
    wait_random,
)

from stoplab_platform.errors import DataAway, DataError, DataMissing

log = logging.getLogger("stoplab.remote")

PART = 8 << 20
TRIES = 8  # of each part; the waits between them add up to about a minute
FIRST_S, LONGEST_S = 0.5, 30.0
ANSWER_S = 30.0  # a server that says nothing for so long is asked anew
HTTP = ("http://", "https://")
TRY_AGAIN = (408, 425, 429)  # below 500
NO_KEYS = ("NoCredentialsError", "PartialCredentialsError")  # botocore's, which need not be here
PACKAGES = {"s3": "stoplab[s3]", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""What reads a scheme's URLs, where that is a package of its own."""
WANTED = Event()  # never set
Options = dict[str, Any]


def file_system(name: str, options: Options) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL, and the path in it; DataError where its package is missing."""
    if name.startswith(HTTP):
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=ANSWER_S, sock_read=ANSWER_S)
        options = {"client_kwargs": {"timeout": timeout}, **options}
    try:
        files, path = fsspec.core.url_to_fs(name, **options)
    except ImportError as error:
        scheme = name.partition("://")[0]
        missing = f"pip install '{PACKAGES[scheme]}'" if scheme in PACKAGES else str(error)
        raise DataError(
            f"{name}: what reads {scheme}:// is not installed on this machine: {missing}"
        ) from error
    return files, path


class Remote:
    """One file, or what lies below a name, of a file system that may fail for a while.

    Raises DataMissing where it is not there, DataError where it may not be read or written,
    DataAway when the place does not answer; each names it.
    """

    def __init__(self, name: str, options: Options) -> None:
        self.name = name
        self._files, self._path = file_system(name, options)

    def info(self) -> dict[str, Any]:
        """What the place knows of it: `size` in bytes (None: unknown), and stamps of its own."""
        found: dict[str, Any] = self._asked(self._info)
        return found

    def size(self) -> int:
        """Its bytes, as the place has it now."""
        return int(self._asked(self._size))

    def read(self) -> bytes:
        """All of it, for small ones."""
        data: bytes = self._asked(self._files.cat_file, self._path)
        return data

    def matches(self) -> list[str]:
        """URLs of the files that its name, a pattern, matches, sorted."""
        found = self._asked(self._files.glob, self._path)
        return sorted(self._files.unstrip_protocol(path) for path in found)

    def below(self) -> dict[str, int]:
        """Bytes of all files below its name, as the place has them now, by path from there."""
        try:
            found = self._asked(self._found)
        except DataMissing:
            return {}
        start = len(self._path.rstrip("/")) + 1
        return {path[start:]: info["size"] for path, info in found.items() if len(path) > start}

    def put(self, file: Path) -> None:
        """Become a copy of a local file, whole or not at all."""
        size = file.stat().st_size
        self._asked(self._put, str(file), size, verb="written")

    def write(self, data: bytes) -> None:
        """Become a few bytes, whole or not at all."""
        self._asked(self._files.pipe_file, self._path, data, verb="written")

    def remove(self) -> None:
        """Take it away; where it is not there, that is well."""
        with suppress(DataMissing):
            self._asked(self._files.rm_file, self._path, verb="removed")

    def parts(self, size: int | None, given_up: Event) -> Iterator[bytes]:
        """Its bytes in order; ends early, with DataAway, once nobody wants them any more."""
        if size is None:
            yield self.read()
            return
        start = 0
        while start < size:
            if given_up.is_set():
                raise DataAway(f"{self.name}: given up")
            stop = min(start + PART, size)
            part = self._asked(self._part, start, stop, size, given_up=given_up)
            yield part
            start += len(part)

    def _part(self, start: int, stop: int, size: int) -> bytes:
        data: bytes = self._files.cat_file(self._path, start=start, end=stop)
        if len(data) == size and start == 0:
            return data  # a server that knows no ranges
        if len(data) != stop - start:
            raise ConnectionError(f"{len(data)} bytes came of {stop - start}")
        return data

    def _found(self) -> dict[str, dict[str, Any]]:
        self._files.invalidate_cache()
        found: dict[str, dict[str, Any]] = self._files.find(self._path, detail=True)
        return found

    def _info(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._files.info(self._path)
        except FileNotFoundError as error:
            # Of HTTP, fsspec says so whatever went wrong.
            why = error.__cause__
            is_http = self.name.startswith(HTTP)
            if why is None or not is_http or getattr(why, "status", None) in (404, 410):
                raise
            raise why from None
        return found

    def _size(self) -> int:
        self._files.invalidate_cache()
        return int(self._info()["size"])

    def _put(self, file: str, size: int) -> None:
        self._files.put_file(file, self._path)
        if (there := self._size()) != size:
            raise ConnectionError(f"{there} bytes arrived of {size}")

    def _asked(
        self, question: Any, *words: Any, verb: str = "read", given_up: Event = WANTED
    ) -> Any:
        try:
            return _retrying(self.name, given_up)(question, *words)
        except FileNotFoundError as error:
            raise DataMissing(f"{self.name} does not exist") from error
        except Exception as error:
            if _may_pass(error):
                raise DataAway(f"{self.name}: {_said(error)}, {TRIES} times") from error
            raise DataError(f"{self.name} cannot be {verb}: {_said(error)}") from error


def copied(remote: Remote, size: int | None, target: BinaryIO, given_up: Event) -> str:
    """Write all of it to a file's start; its sha256 (hex)."""
    digest = hashlib.sha256()
    for part in remote.parts(size, given_up):
        digest.update(part)
        target.write(part)
    target.truncate()
    return digest.hexdigest()


def _retrying(name: str, given_up: Event) -> Retrying:
    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        wait = state.next_action.sleep if state.next_action else 0.0
        log.warning("%s: %s; again in %.1f s", name, _said(error), wait)

    return Retrying(
        retry=retry_if_exception(_may_pass),
        wait=wait_exponential(multiplier=FIRST_S, max=LONGEST_S) + wait_random(0, FIRST_S),
        stop=stop_after_attempt(TRIES) | stop_when_event_set(given_up),
        sleep=sleep_using_event(given_up),
        before_sleep=tell,
        reraise=True,
    )


def _may_pass(error: BaseException) -> bool:
    """Whether the same question may be answered later."""
    if isinstance(error, FileNotFoundError | PermissionError | ValueError | TypeError):
        return False
    if type(error).__name__ in NO_KEYS:
        return False
    status = getattr(error, "status", None)  # of HTTP
    if isinstance(status, int) and 400 <= status < 500:
        return status in TRY_AGAIN
    return isinstance(error, Exception)


def _said(error: BaseException | None) -> str:
    return str(error) or type(error).__name__
