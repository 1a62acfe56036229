"""Files that appear whole, are removed whole, and may not be there yet."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4


def is_plain_name(text: str) -> bool:
    """Whether a text of a user's may name a file: one part, and no hidden one."""
    return re.fullmatch(r"[A-Za-z0-9_@][\w.@-]{0,63}", text, re.ASCII) is not None


GONE = ".gone-"
"""Begins the name of what is being removed."""


def remove(path: Path) -> None:
    """Take a file or folder away, and what an earlier try left; nobody sees a part of it."""
    if path.exists():
        path.rename(path.with_name(f"{GONE}{path.name}-{uuid4().hex[:8]}"))
    for gone in path.parent.glob(f"{GONE}{path.name}-*"):
        if gone.is_dir():
            shutil.rmtree(gone)
        else:
            gone.unlink()


def write_atomic(path: Path, text: str) -> None:
    """Replace ``path`` by ``text``: readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        with draft.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)  # of a full disk


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any | None:
    """What a file of ours holds, or None where it does not exist (yet)."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None


def read_lines(path: Path) -> list[Any]:
    """What a file of JSON lines holds, but for a last one that is being written."""
    try:
        whole = path.read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in whole]


def add_line(path: Path, value: Any) -> None:
    """Append ``value`` as a line of JSON; what a kill or a full disk cut off before it goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(max(file.tell() - 1, 0))
        if file.read() not in (b"", b"\n"):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json.dumps(value).encode() + b"\n")
