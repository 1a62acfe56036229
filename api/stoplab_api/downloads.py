"""A file from the server to the disk, taken up where it broke: in this call or in a later one.

What has come lies beside the target under a name that holds the file's ETag, so that the parts of
two different files never meet. Nothing here does I/O but on the disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from stoplab_api.call import asked, nothing
from stoplab_api.exchange import Patience

BLOCK = 1 << 20


class Download(Patience):
    """One file: told each answer and block, it knows what to ask for next."""

    def __init__(self, url: str, path: str, to: Path) -> None:
        super().__init__(url)
        self._call, self._to = asked(path, nothing), to
        self._tag, self._part = "", to
        self._length: int | None = None
        self._received = 0

    @property
    def whole(self) -> bool:
        """Whether everything is on the disk."""
        return self._length is not None and self._received >= self._length

    def request(self) -> dict[str, Any]:
        """What is missing, as httpx takes it; first of all what the file is."""
        made = self._call.request()
        if self._received:
            made["headers"] |= {"Range": f"bytes={self._received}-", "If-Range": self._tag}
        return made

    def opened(self, answer: httpx.Response) -> bool:
        """Whether the body to come is what is missing; else it is asked for next."""
        if answer.status_code == httpx.codes.PARTIAL_CONTENT:
            return True
        self._tag, self._length = answer.headers["ETag"], int(answer.headers["Content-Length"])
        sign = "".join(letter for letter in self._tag if letter.isalnum())
        self._part = self._to.with_name(f".{self._to.name}.{sign}.part")
        self._part.parent.mkdir(parents=True, exist_ok=True)
        self._part.touch()
        self._received = self._part.stat().st_size
        return self._received == 0

    def feed(self, block: bytes) -> None:
        """Keep a block of the body."""
        with self._part.open("ab") as file:
            file.write(block)
        self._received += len(block)
        self.heard()

    def finish(self) -> Path:
        """Put the whole file where it was wanted."""
        return self._part.replace(self._to)
