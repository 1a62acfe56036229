"""The files of a job that are meant for people: specs, results, pictures, checkpoints.

What is not named here is nobody's business: spools, ledgers, fences, locks, logs (which have a call
of their own).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from stoplab_platform.paths import JobFolder, RunFolder


class Artifact(NamedTuple):
    """One file."""

    path: str
    """Below the job's folder, with `/`."""
    bytes: int
    modified: datetime


def artifacts(folder: JobFolder) -> list[Artifact]:
    """A job's artifacts, by path; links are none."""
    found = [*_own(folder), *(file for run in folder.each_run() for file in _of_run(run))]
    told: list[Artifact] = []
    for file in found:
        with suppress(FileNotFoundError):  # an old checkpoint may go at any moment
            if _is_plain(folder, file):
                told.append(_told(folder, file))
    return sorted(told)


def find_artifact(folder: JobFolder, path: str) -> Path | None:
    """The file behind a path that somebody asks for; None where it is no artifact.

    A path is taken as it is listed: nothing in it leads up, out or through a link.
    """
    if "\0" in path or "\\" in path:
        return None
    parts = path.split("/")
    if any(part == "" or part.startswith(".") for part in parts):
        return None
    file = folder.root.joinpath(*parts)
    return file if _is_meant(folder, file) and _is_plain(folder, file) else None


def _own(folder: JobFolder) -> tuple[Path, ...]:
    return (
        folder.spec,
        folder.comparison,
        folder.comparison_page,
        folder.comparison_html,
        folder.comparison_png,
        folder.comparison_tex,
        folder.surface,
        folder.surface_html,
        folder.surface_png,
        folder.trials,
        folder.trials_parquet,
    )


def _results(run: RunFolder) -> tuple[Path, ...]:
    return run.spec, run.summary, run.evaluation, run.predictions


def _of_run(run: RunFolder) -> Iterator[Path]:
    yield from _results(run)
    yield from run.artifacts.rglob("*")
    yield from run.checkpoints.glob("*/*")


def _is_meant(folder: JobFolder, file: Path) -> bool:
    """Whether the listing would name it, were it there."""
    if file in _own(folder):
        return True
    inside = file.relative_to(folder.root).parts
    if len(inside) < 3 or folder.root / inside[0] != folder.runs:
        return False
    run = folder.run(inside[1])
    if file in _results(run) or run.artifacts in file.parents:
        return True
    return file.parent.parent == run.checkpoints


def _is_plain(folder: JobFolder, file: Path) -> bool:
    """A file that lies where its path says, without a link below the job's folder; no draft."""
    inside = file.relative_to(folder.root)
    if any(part.startswith(".") for part in inside.parts):
        return False
    try:
        return file.is_file() and file.resolve() == folder.root.resolve() / inside
    except OSError:  # a name that no file can have
        return False


def _told(folder: JobFolder, file: Path) -> Artifact:
    stamp = file.stat()
    modified = datetime.fromtimestamp(stamp.st_mtime, UTC)
    return Artifact(str(PurePosixPath(file.relative_to(folder.root))), stamp.st_size, modified)
