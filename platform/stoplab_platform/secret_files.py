"""Secrets in files that only their owner can read."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path
from uuid import uuid4


def ensure_secret(path: Path, prefix: str = "") -> str:
    """The secret in a file, made (0600, after a prefix) where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileExistsError):
        _write(path, prefix + secrets.token_hex(32))
    return path.read_text().strip()


def write_secret(path: Path, value: str) -> None:
    """Put a secret into a file (0600), whatever was in it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    _write(draft, value)
    draft.replace(path)


def _write(path: Path, value: str) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(file, "w") as text:
        text.write(value)
