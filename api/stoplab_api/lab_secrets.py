"""The local lab's secrets: files that only their owner can read."""

from __future__ import annotations

import getpass
import os
import secrets
from contextlib import suppress
from pathlib import Path

from stoplab_platform.jobs.models import Role
from stoplab_platform.settings import Settings


def ensure_secret(path: Path) -> str:
    """The secret in a file, made (0600) where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileExistsError):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(file, "w") as text:
            text.write(secrets.token_hex(32))
    return path.read_text().strip()


def ensure_token(settings: Settings) -> None:
    """Tables, and the local user's token as an administrator's of the default project."""
    # The database's toolkit takes as long to import as all else that the command line needs.
    from stoplab_platform.jobs.store import JobStore

    store = JobStore(settings.database)
    try:
        store.migrate()
        path = settings.folders.token_file
        if store.principal(ensure_secret(path)) is None:
            path.unlink()  # revoked, or of a database that is gone
            store.create_token(
                "local",
                owner=_user(),
                project="default",
                role=Role.ADMIN,
                secret=ensure_secret(path),
            )
    finally:
        store.close()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "local"
