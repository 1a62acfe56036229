"""Secrets in files that only their owner can read."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def ensure_secret(path: Path, prefix: str = "") -> str:
    """The secret in a file, made (0600, after a prefix) where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileExistsError):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(file, "w") as text:
            text.write(prefix + secrets.token_hex(32))
    return path.read_text().strip()
