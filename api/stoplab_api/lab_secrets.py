"""Tokens made by whoever holds the home or its database, without asking the API."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from stoplab_api.answers import FreshTokenBody
from stoplab_api.bodies import NewTokenBody
from stoplab_platform.errors import SettingsError
from stoplab_platform.files import is_plain_name
from stoplab_platform.jobs.models import Role, Scope
from stoplab_platform.secret_files import ensure_secret
from stoplab_platform.settings import Settings

if TYPE_CHECKING:
    from stoplab_platform.jobs.store import JobStore


def ensure_token(settings: Settings) -> None:
    """Tables, and the local user's token as an administrator's of the default project."""
    from stoplab_platform.jobs.token_store import PREFIX  # as heavy as the store

    path = settings.folders.token_file
    with _migrated(settings) as store:
        if store.principal(ensure_secret(path, PREFIX)) is None:
            path.unlink()  # revoked, or of a database that is gone
            store.create_token(
                "local",
                owner=_user(),
                project="default",
                role=Role.ADMIN,
                secret=ensure_secret(path, PREFIX),
            )


def create_directly(settings: Settings, project: str, asked: NewTokenBody) -> FreshTokenBody:
    """A token in any project, which begins with its first one.

    SettingsError where the home has no database yet, or the project's name will not do.
    """
    if not is_plain_name(project):
        raise SettingsError(
            f"{project!r} cannot name a project: letters, digits, `.`, `_`, `-` and `@`, "
            "not beginning with a dot"
        )
    days = asked.expires_in_days
    with opened(settings) as store:
        token, secret = store.create_token(
            asked.name,
            owner=asked.owner,
            project=project,
            role=Role(asked.role),
            expires_at=None if days is None else datetime.now(UTC) + timedelta(days=days),
            scopes=None if asked.scopes is None else frozenset(map(Scope, asked.scopes)),
            actor=_user(),
        )
    return FreshTokenBody(
        id=token.id, name=token.name, owner=token.owner, project=token.project,
        role=asked.role, created_at=token.created_at, expires_at=token.expires_at,
        revoked_at=None, scopes=asked.scopes, secret=secret,
    )  # fmt: skip


@contextmanager
def opened(settings: Settings) -> Iterator[JobStore]:
    """The store of a lab that was begun; SettingsError where the home has none."""
    if settings.database_url is None and not settings.folders.database.exists():
        raise SettingsError(f"{settings.home} has no database; `stoplab up` makes one")
    with _migrated(settings) as store:
        yield store


@contextmanager
def _migrated(settings: Settings) -> Iterator[JobStore]:
    # The database's toolkit takes as long to import as all else that the command line needs.
    from stoplab_platform.jobs.store import JobStore

    store = JobStore(settings.database)
    try:
        store.migrate()
        yield store
    finally:
        store.close()


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "local"
