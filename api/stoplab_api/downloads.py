"""A file from the server to the disk, taken up where it broke: in this call or in a later one.

What has come lies beside the target under a name that holds the file's ETag, so that the parts of
two different files never meet.
"""

from __future__ import annotations

from pathlib import Path

import httpx

from stoplab_api.transport import Transport

BLOCK = 1 << 20


class Download:
    """One file; `attempt` may be called until it comes through."""

    def __init__(self, api: Transport, path: str, to: Path) -> None:
        self._api, self._path, self._to = api, path, to
        self.received = 0
        """Bytes that are on the disk."""

    def attempt(self) -> None:
        """Fetch what is missing. Raises httpx.TransportError, and ApiError for a refusal."""
        with self._api.body(self._path) as answer:
            part, tag = self._part(answer), answer.headers["ETag"]
            self.received = part.stat().st_size if part.exists() else 0
            if self.received == 0:
                self._append(answer, part)
        if self.received < int(answer.headers["Content-Length"]):
            self._rest(part, tag)
        part.replace(self._to)

    def _rest(self, part: Path, tag: str) -> None:
        wanted = {"Range": f"bytes={self.received}-", "If-Range": tag}
        with self._api.body(self._path, wanted) as answer:
            if answer.status_code != httpx.codes.PARTIAL_CONTENT:
                raise httpx.ReadError("the file has changed; it is fetched anew")
            self._append(answer, part)

    def _append(self, answer: httpx.Response, part: Path) -> None:
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as file:
            for block in answer.iter_bytes(BLOCK):
                file.write(block)
                self.received += len(block)

    def _part(self, answer: httpx.Response) -> Path:
        tag = "".join(letter for letter in answer.headers["ETag"] if letter.isalnum())
        return self._to.with_name(f".{self._to.name}.{tag}.part")
