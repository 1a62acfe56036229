"""The database: reachable, of this version's schema, writable, its clock."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from stoplab_api.doctor.finding import Finding, clock
from stoplab_platform.errors import SettingsError, StoreUnavailable
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.settings import Settings

NETWORK = ("nfs", "cifs", "smb", "fuse.sshfs", "lustre", "beegfs", "9p", "afs")
"""File systems on which SQLite's locks and shared memory are not to be trusted."""


def storage(settings: Settings) -> Iterator[Finding]:
    """The database of the settings; one that does not exist yet is not made."""
    try:
        yield from _examined(settings)
    except (SQLAlchemyError, SettingsError) as error:
        yield Finding(
            "database", False, str(getattr(error, "orig", None) or error),
            "see STOPLAB_DATABASE_URL: postgresql://USER:PASSWORD@HOST/NAME, its driver "
            "(`pip install 'stoplab[api]'`), and that the file is a database",
        )  # fmt: skip


def mounted_as(path: str) -> str:
    """Kind of the file system that a path lies on."""
    mounts = {mount.mountpoint: mount.fstype for mount in psutil.disk_partitions(all=True)}
    above = [place for place in mounts if path.startswith(place.rstrip("/") + "/")]
    return mounts[max(above, key=len)] if above else ""


def _examined(settings: Settings) -> Iterator[Finding]:
    url = make_url(settings.database)
    shown = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "sqlite":
        if not settings.folders.database.exists() and settings.database_url is None:
            yield Finding("database", True, "none yet; `stoplab up` makes one")
            return
        kind = mounted_as(str(url.database))
        if kind.startswith(NETWORK):
            yield Finding(
                "database's disk", False, f"SQLite on {kind}, which may lose or corrupt it",
                "put STOPLAB_HOME on a local disk, or set STOPLAB_DATABASE_URL to a PostgreSQL",
            )  # fmt: skip
    store = JobStore(settings.database)
    try:
        yield from _opened(store, shown)
    except StoreUnavailable as error:
        yield Finding(
            "database", False, f"{shown}: {error}",
            "start its server, or see that the file and its folder are yours to write and the "
            "disk is not full",
        )  # fmt: skip
    finally:
        store.close()


def _opened(store: JobStore, shown: str) -> Iterator[Finding]:
    found, known = store.schema()
    if found != known:
        older = found is None or (known is not None and found < known)
        cure = (
            "start the API (`stoplab up`): it renews the tables"
            if older
            else "this stoplab is older than the database: install the one that made it"
        )
        yield Finding("database", False, f"{shown} has schema {found}, not {known}", cure)
        return
    before = time.time()
    ahead_s = store.clock() - (before + time.time()) / 2
    store.ping()
    yield Finding("database", True, f"{shown} takes writes, schema {found}")
    yield clock("database's clock", ahead_s)
