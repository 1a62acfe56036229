"""Features on disk: a checkpoint that is judged again is not run again."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stoplab_trainers.data.cache import locked, replacing

MOST_BYTES = 4 << 30  # of all kept features of a cache

Features = NDArray[np.float32]


def kept(path: Path, make: Callable[[], Features]) -> Features:
    """What lies at ``path``, or what ``make`` gives, which then lies there.

    Among processes one makes it, the others wait and read. What is not whole is made again.
    """
    with locked(path):
        found = _read(path)
        if found is None:
            found = make()
            if found.nbytes <= MOST_BYTES:
                with replacing(path) as file:
                    np.save(file, found, allow_pickle=False)
                _make_room(path)
        return found


def _read(path: Path) -> Features | None:
    try:
        found: Features = np.load(path, allow_pickle=False)
    except (EOFError, ValueError, OSError):
        return None
    with suppress(OSError):  # who makes room may have removed it just now
        os.utime(path)  # it was of use: others go first
    return found


def _make_room(newest: Path) -> None:
    """Remove what was of no use for longest, until the folder is within its bound."""
    sizes: dict[Path, tuple[int, float]] = {}
    for path in newest.parent.glob("*.npy"):
        try:
            stamp = path.stat()
        except FileNotFoundError:
            continue  # another process makes room as well
        sizes[path] = (stamp.st_size, stamp.st_mtime)
    total = sum(size for size, _ in sizes.values())
    for path in sorted(sizes, key=lambda one: sizes[one][1]):
        if total <= MOST_BYTES:
            return
        if path != newest:
            path.unlink(missing_ok=True)
            total -= sizes[path][0]
