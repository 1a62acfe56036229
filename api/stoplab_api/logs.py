"""Reading log files that may still be growing. Offsets and sizes are in bytes."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHUNK = 64 * 1024
"""Most bytes in one chunk; a longer line is split here."""


@dataclass(frozen=True)
class Chunk:
    """A part of a log and the offset after it."""

    data: bytes
    end: int

    @property
    def text(self) -> str:
        """For people: bytes that are not UTF-8 show as U+FFFD."""
        return self.data.decode(errors="replace")


def size(path: Path) -> int:
    """Bytes so far; 0 before the file exists."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def next_chunk(path: Path, offset: int, *, final: bool) -> Chunk | None:
    """Whole lines from ``offset`` on, or None while there is no whole line.

    With ``final`` nothing more will be written: the last line counts without its end too.
    """
    window = _read(path, offset, CHUNK)
    cut = window.rfind(b"\n") + 1
    if cut == 0 and len(window) == CHUNK:
        cut = _whole_characters(window)
    elif cut == 0 and final:
        cut = len(window)
    return Chunk(window[:cut], offset + cut) if cut else None


def tail_start(path: Path, lines: int) -> int:
    """Offset at which the last ``lines`` lines begin; an unfinished last line counts as one."""
    position = end = size(path)
    wanted = lines
    while position > 0:
        start = max(0, position - CHUNK)
        block = _read(path, start, position - start)
        # The newline at the very end closes the last line, it does not start another.
        stop = len(block) - 1 if position == end and block.endswith(b"\n") else len(block)
        while wanted > 0 and (found := block.rfind(b"\n", 0, stop)) >= 0:
            wanted, stop = wanted - 1, found
            if wanted == 0:
                return start + found + 1
        position = start
    return 0 if lines > 0 else end


def blocks(path: Path, start: int, end: int) -> Iterator[bytes]:
    """The bytes between two offsets, a block at a time."""
    while start < end and (block := _read(path, start, min(CHUNK, end - start))):
        yield block
        start += len(block)


def _read(path: Path, offset: int, length: int) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return b""
    try:
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


def _whole_characters(window: bytes) -> int:
    """Where to cut a long line so that no UTF-8 character is torn."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(window)
    pending, _ = decoder.getstate()
    return len(window) - len(pending)
