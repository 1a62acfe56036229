"""This machine: Python, disk, memory, and whether the home's file system keeps its word."""

from __future__ import annotations

import os
import platform
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from filelock import FileLock, Timeout

from stoplab_api.doctor.finding import Finding, existing, gib
from stoplab_api.lab_parts import OBJECT_STORE_BYTES
from stoplab_platform.paths import Home

OLDEST_PYTHON = (3, 11)
DISK_BYTES = 5 * 1024**3
MEMORY_BYTES = 3 * 1024**3  # of a lab that does nothing yet
SHARED_MEMORY = Path("/dev/shm")


def machine(home: Home) -> Iterator[Finding]:
    """Python, disk, memory, shared memory, the home, the tokens' files."""
    yield Finding(
        "python", sys.version_info >= OLDEST_PYTHON, platform.python_version(),
        "stoplab needs Python 3.11 or newer",
    )  # fmt: skip
    yield disk(home.root)
    memory = psutil.virtual_memory().available
    yield Finding(
        "memory", memory > MEMORY_BYTES, f"{gib(memory)} available",
        f"a lab needs {gib(MEMORY_BYTES)}; end something else",
    )  # fmt: skip
    if SHARED_MEMORY.is_dir():
        yield shared_memory(SHARED_MEMORY)
    yield file_system(home.root)
    for path in (home.token_file, home.ray_token_file):
        if path.exists():
            yield token_file(path)


def disk(root: Path) -> Finding:
    """Room for checkpoints."""
    folder = existing(root)
    free = shutil.disk_usage(folder).free
    return Finding(
        "disk", free > DISK_BYTES, f"{gib(free)} free below {folder}",
        f"free some, or set STOPLAB_HOME to a disk with {gib(DISK_BYTES)}",
    )  # fmt: skip


def shared_memory(folder: Path) -> Finding:
    """Room for Ray's object store."""
    total = shutil.disk_usage(folder).total
    return Finding(
        "shared memory", total > OBJECT_STORE_BYTES, f"{gib(total)} at {folder}",
        "Ray will use slow files instead; start the container with --shm-size=1g",
    )  # fmt: skip


def file_system(root: Path) -> Finding:
    """Whether files can be written, replaced at once, made by one alone, and locked."""
    folder = existing(root)
    cure = f"make it yours (chown), or set STOPLAB_HOME to another folder than {root}"
    try:
        with TemporaryDirectory(prefix=".doctor-", dir=folder) as place:
            wrong = "; ".join(_broken_promises(Path(place)))
    except OSError as error:
        return Finding("home", False, f"{folder} cannot be written to: {error}", cure)
    if wrong:
        cure = "set STOPLAB_HOME to a local disk, or to NFS 4 with locks"
        return Finding("home", False, f"the file system of {folder} {wrong}", cure)
    if not root.exists():
        return Finding("home", True, f"{root} will be made in {folder}")
    return Finding("home", True, f"{root}: files can be written, replaced and locked")


def token_file(path: Path) -> Finding:
    """Nobody else may read it."""
    mode = stat.S_IMODE(path.stat().st_mode)
    return Finding(
        f"token {path.name}", mode & 0o077 == 0, f"{path} has mode {mode:o}",
        f"others can read it: chmod 600 {path}",
    )  # fmt: skip


def _broken_promises(place: Path) -> Iterator[str]:
    """What fences, results and ledgers rely on."""
    old, new = place / "old", place / "new"
    old.write_text("old")
    new.write_text("new")
    new.replace(old)
    if old.read_text() != "new":
        yield "does not replace a file by renaming"
    try:
        os.close(os.open(old, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        yield "makes a file that exists already"
    except FileExistsError:
        pass
    try:
        with FileLock(place / "lock"), FileLock(place / "lock", timeout=0):
            yield "gives a lock to two at once"
    except Timeout:
        pass
