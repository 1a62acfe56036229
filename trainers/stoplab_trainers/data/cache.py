"""Files that can be made again: written once, whole, by whichever process comes first.

The cache may have a budget. Copies of shards then go in the order of their last use: whoever still
has one open reads on, and whoever needs one again makes it again.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, TextIO
from uuid import uuid4

from tenacity import retry, retry_if_exception_type, stop_after_attempt

log = logging.getLogger("stoplab.data")

COPIES = ("remote", "unpacked")
"""Folders of the cache that hold shards, each below an entry of its own."""
again = retry(
    retry=retry_if_exception_type(FileNotFoundError), stop=stop_after_attempt(3), reraise=True
)
"""For what makes or opens files of the cache: others may empty it meanwhile."""
DRAFT_S = 3600.0  # a draft that nobody has written to for so long is nobody's


@contextmanager
def locked(path: Path, *, keep: bool = True) -> Iterator[None]:
    """Hold the lock named after ``path`` among all processes that use the same folder.

    In the cache the lock only saves double work: what is made under it appears by rename, so that
    two who both make it (on a file system without locks) do no harm. ``keep`` False: its file is
    gone afterwards.
    """
    lock = path.with_name(f"{path.name}.lock")
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(lock, file):
                continue  # taken away while we waited: another file is the lock by now
            try:
                yield
            finally:
                if not keep:
                    lock.unlink(missing_ok=True)
            return


def _is_at(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes ``path`` when the block ends well, and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        if error.errno in (ENOSPC, EDQUOT):
            raise OSError(error.errno, error.strerror, str(path)) from error  # which disk is full
        raise
    finally:
        draft.unlink(missing_ok=True)


def note_use(path: Path) -> None:
    """For who keeps the cache small: many file systems do not note it by themselves."""
    with suppress(OSError):  # somebody else's file, one that may only be read, or gone meanwhile
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def make_room(cache: Path, file: BinaryIO, size: int, budget: int | None) -> None:
    """Reserve ``size`` bytes for a file that is being made: copies used longest ago make room.

    What killed processes left half made goes in any case.
    Beyond the budget nothing is refused, only told: who asks has looked at the start whether its
    own shards fit, and what else is there may go later.
    """
    _remove_old_drafts(cache, int(time.time() // DRAFT_S))
    if budget is None:
        return
    with locked(cache / "room"):
        excess = _occupied(cache) + size - budget
        for entry in sorted(_copies(cache), key=lambda entry: entry.used) if excess > 0 else ():
            if excess <= 0:
                break
            if entry.bytes and not entry.is_being_made:
                log.info("the cache lets go of %s (%d bytes)", entry.path.name, entry.bytes)
                _remove(entry.path)
                excess -= entry.bytes
        file.truncate(size)  # so that the next one who looks counts it
    if excess > 0:
        log.warning("the cache is %d bytes beyond STOPLAB_CACHE_BYTES (%d)", excess, budget)


@dataclass(frozen=True)
class _Entry:
    path: Path
    bytes: int
    used: float
    is_being_made: bool


@lru_cache(maxsize=8)
def _remove_old_drafts(cache: Path, _hour: int) -> None:
    """Once an hour: it walks the whole cache, which before each copy would take too long."""
    young = time.time() - DRAFT_S
    drafts = [path for kind in COPIES for path in (cache / kind).glob("**/.*")]
    # Of checkpoints also whole copies: they go once they are read, unless who read was killed.
    for path in [*drafts, *(cache / "checkpoints").glob("*.pt*")]:
        with suppress(OSError):  # a folder, somebody else's, or gone meanwhile
            if path.stat().st_mtime <= young:
                path.unlink()


def _copies(cache: Path) -> Iterator[_Entry]:
    young = time.time() - DRAFT_S
    for path in (path for kind in COPIES for path in (cache / kind).glob("*")):
        if path.suffix not in (".lock", ".sha256"):
            files = _files(path)
            yield _Entry(
                path=path,
                bytes=sum(stat.st_size for _, stat in files),
                used=max((max(stat.st_atime, stat.st_mtime) for _, stat in files), default=0.0),
                is_being_made=any(n[0] == "." and stat.st_mtime > young for n, stat in files),
            )


def _occupied(cache: Path) -> int:
    return sum(stat.st_size for _, stat in _files(cache))


def _files(path: Path) -> list[tuple[str, os.stat_result]]:
    """A file, or all files of a folder, by name; others may take some away meanwhile."""
    walked = (Path(root, name) for root, _, names in os.walk(path) for name in names)
    found = []
    for file in [path] if path.is_file() else walked:
        with suppress(FileNotFoundError):
            found.append((file.name, file.stat()))
    return found


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
