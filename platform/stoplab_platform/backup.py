"""A lab in one file, and back: made while jobs run, checked by sums when it is restored.

The database comes first, as it is at one moment; the jobs' files are read after it. So a file may
know more than the database, and never less: what was running then is started again after a restore.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO
from uuid import uuid4

from sqlalchemy import make_url

from stoplab_platform.errors import SettingsError
from stoplab_platform.extras import Extra
from stoplab_platform.files import GONE
from stoplab_platform.jobs.engines import copy_sqlite
from stoplab_platform.jobs.store import JobStore
from stoplab_platform.paths import Home, JobFolder
from stoplab_platform.settings import Settings

FORMAT = 1
MANIFEST = "manifest.json"
BLOCK = 1 << 20


def backup(
    settings: Settings, target: Path, extras: Collection[Extra] = (), *, database: bool = True
) -> dict[str, Any]:
    """Write the lab into a tar file (0600) that appears whole; its manifest.

    SettingsError where the database is none that can be copied from here.
    """
    home = settings.folders
    with TemporaryDirectory(dir=_made(target.parent)) as scratch, _appearing(target) as file:
        copies = Path(scratch)
        files = dict(_databases(settings, copies) if database else ())
        files.update(_files(home, extras))
        return _write(file, files)


def restore(source: Path, root: Path) -> dict[str, Any]:
    """Make a home of a backup; its manifest. The home appears whole, or not at all.

    SettingsError where the home holds something, or the backup is broken, or newer than this code.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise SettingsError(f"{root} is not empty; a backup is restored into an empty home")
    draft = _made(root.parent) / f".{root.name}.{uuid4().hex[:8]}"
    try:
        manifest = _unpacked(source, draft)
        if Home(draft).database.exists():
            store = JobStore(f"sqlite:///{Home(draft).database}")
            try:
                store.migrate()
            finally:
                store.close()
        draft.replace(root)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return manifest


def _databases(settings: Settings, copies: Path) -> Iterator[tuple[str, Path]]:
    """Consistent copies, by the names they have in a home."""
    home, url = settings.folders, make_url(settings.database)
    if url.get_backend_name() != "sqlite" or url.database is None:
        raise SettingsError(
            f"the database is {url.get_backend_name()}: copy it with its own tool (pg_dump -Fc), "
            "and the rest with `stoplab backup --files-only`"
        )
    places = {home.database: Path(url.database), home.mlflow_database: home.mlflow_database}
    for place, source in places.items():
        if source.exists():
            copy_sqlite(source, copies / place.name)
            yield str(place.relative_to(home.root)), copies / place.name


def _files(home: Home, extras: Collection[Extra]) -> Iterator[tuple[str, Path]]:
    folders = [home.mlflow_artifacts]
    if Extra.TOKENS in extras:
        folders.append(home.token_file.parent)
    if Extra.SECRETS in extras:
        folders.append(home.all_secrets)
    found = [file for folder in folders for file in _below(folder)]
    for root in sorted(home.jobs.iterdir()) if home.jobs.is_dir() else ():
        if not root.name.startswith(GONE):
            found += _of_job(JobFolder(root), extras)
    for file in found:
        yield str(file.relative_to(home.root)), file


def _of_job(job: JobFolder, extras: Collection[Extra]) -> Iterator[Path]:
    """What is remembered, without what belongs to processes that will be gone."""
    of_processes = (job.owner, job.heartbeat, job.stop)
    yield from (file for file in _in(job.root) if file not in of_processes)
    yield from _below(job.cells)
    if Extra.LOGS in extras:
        yield from _below(job.logs)
    for run in job.each_run():
        yield from (file for file in _in(run.root) if file != run.spool_lock)
        yield from _below(run.artifacts)
        if Extra.CHECKPOINTS in extras:
            yield from _below(run.checkpoints)
        if Extra.LOGS in extras:
            yield from _below(run.logs)


def _in(folder: Path) -> list[Path]:
    """A folder's own files, without drafts."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(file for file in found if file.is_file() and not file.name.startswith("."))


def _below(folder: Path) -> list[Path]:
    """All files below a folder, without drafts."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(folder).parts)
    )


def _write(file: BinaryIO, files: dict[str, Path]) -> dict[str, Any]:
    sums: dict[str, Any] = {}
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, path in files.items():
            with suppress(FileNotFoundError):  # a file that a run has just taken away
                sums[name] = _add(tar, name, path)
        manifest = {"format": FORMAT, "made_at": datetime.now(UTC).isoformat(), "files": sums}
        text = json.dumps(manifest, indent=1).encode()
        info = tarfile.TarInfo(MANIFEST)
        info.size = len(text)
        tar.addfile(info, BytesIO(text))
    return manifest


def _add(tar: tarfile.TarFile, name: str, path: Path) -> dict[str, Any]:
    with path.open("rb") as source:
        status = os.fstat(source.fileno())
        info = tarfile.TarInfo(name)
        info.size = _whole_lines(source) if path.suffix == ".jsonl" else status.st_size
        info.mode, info.mtime = status.st_mode & 0o777, int(status.st_mtime)
        source.seek(0)
        reader = _Summing(source)
        tar.addfile(info, reader)  # type: ignore[arg-type]  # it only reads
        return {"sha256": reader.sum.hexdigest(), "bytes": info.size}


class _Summing:
    """A file whose checksum is known once it was read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.sum = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.sum.update(data)
        return data


def _whole_lines(file: BinaryIO) -> int:
    """Bytes up to the last end of a line: somebody may be writing the next one."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _unpacked(source: Path, draft: Path) -> dict[str, Any]:
    try:
        with tarfile.open(source, mode="r:") as tar:
            tar.extractall(draft, filter="data")
        manifest: dict[str, Any] = json.loads((draft / MANIFEST).read_text())
    except (OSError, tarfile.TarError, ValueError) as error:
        raise SettingsError(f"{source} is no whole backup: {error}") from error
    if manifest["format"] != FORMAT:
        raise SettingsError(f"{source} has the format {manifest['format']}, not {FORMAT}")
    (draft / MANIFEST).unlink()
    there = {str(file.relative_to(draft)) for file in draft.rglob("*") if file.is_file()}
    broken = sorted(there ^ manifest["files"].keys())
    for name, known in manifest["files"].items():
        if name in there and _sha256(draft / name) != known["sha256"]:
            broken.append(name)
    if broken:
        raise SettingsError(f"{source} is broken at {len(broken)} files, the first: {broken[0]}")
    for folder in (Home(draft).token_file.parent, Home(draft).all_secrets):
        for inner in (folder, *folder.rglob("*")):
            if inner.is_dir():
                inner.chmod(0o700)
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _appearing(path: Path) -> Iterator[BinaryIO]:
    """A file for its owner alone that becomes ``path`` when the block ends well."""
    draft = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
