"""The local user's token."""

from __future__ import annotations

import getpass

from stoplab_platform.jobs.models import Role
from stoplab_platform.secret_files import ensure_secret
from stoplab_platform.settings import Settings


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
