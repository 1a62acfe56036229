"""Checkpoints that lie elsewhere than in their run's folder (`checkpoint.url`): who has them where.

A run's folder says so in `checkpoints.json`, which nobody needs a spec or torch to read. Each run
writes to a place of its own. A retry or an extension reads those of the run that it goes on from
too: it adopts them, and they go when no run of the lab names them any more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from stoplab_platform.errors import DataError, SettingsError
from stoplab_platform.files import GONE, read_json, remove, write_json
from stoplab_platform.paths import Home, JobFolder, RunFolder
from stoplab_platform.remote import Remote
from stoplab_platform.secret_store import Secrets
from stoplab_platform.settings import Settings
from stoplab_platform.specs.places import is_inside, why_refused

FILE = "file://"
LEFT = "checkpoints.left"
"""Event of a job whose checkpoints elsewhere could not be removed, and stay."""


class Place(BaseModel):
    """Where checkpoints lie: a URL or an absolute path, and a reference to its options."""

    model_config = ConfigDict(frozen=True)

    url: str
    storage: str | None = None

    def local(self) -> Path | None:
        """The folder, where it is one of a mounted file system."""
        path = self.url.removeprefix(FILE)
        return None if "://" in path else Path(path).absolute()

    def check(self, settings: Settings) -> None:
        """DataError where the lab does not allow it (any more), links followed."""
        if why := why_refused(self.url, None, settings.data_schemes):
            raise DataError(why)
        folder = self.local()
        if folder is not None and not is_inside(folder, settings.data_roots):
            raise DataError(f"{folder} lies outside of what STOPLAB_DATA_ROOTS allows")

    def remote(self, settings: Settings, project: str | None, name: str = "") -> Remote:
        """What lies below it under a name; DataError, SettingsError where it cannot be asked."""
        options = Secrets(settings, project).options(self.storage) if self.storage else {}
        return Remote(f"{self.url}/{name}".rstrip("/"), options)

    def sizes(self, settings: Settings, project: str | None = None) -> list[int]:
        """Bytes of each file below it; raises as `Remote`, and SettingsError."""
        folder = self.local()
        if folder is None:
            return list(self.remote(settings, project).below().values())
        self._look_for(folder)
        return [file.stat().st_size for file in folder.rglob("*") if file.is_file()]

    def empty(self, settings: Settings, project: str | None = None) -> None:
        """Remove all that lies below it; raises as `Remote`, and SettingsError."""
        self.check(settings)
        folder = self.local()
        if folder is not None:
            self._look_for(folder)
            if folder.parent.exists():
                remove(folder)
                with suppress(OSError):  # of a study, others lie beside it
                    folder.parent.rmdir()
            return
        # A checkpoint is none without its manifest, whose name sorts before the state's.
        for name in sorted(self.remote(settings, project).below()):
            self.remote(settings, project, name).remove()

    def _look_for(self, folder: Path) -> None:
        """DataError where its file system is not this machine's."""
        top = folder.parent.parent  # what the spec names: it was there when the run began
        if not top.exists():
            raise DataError(f"there is no {top} on this machine")


class Places(BaseModel):
    """What a run's folder says of them."""

    model_config = ConfigDict(frozen=True)

    own: Place | None = None
    """Where the run writes; null: nothing yet, or into its folder."""
    adopted: tuple[Place, ...] = ()
    """Where those lie that it went on from."""

    @property
    def all(self) -> tuple[Place, ...]:
        """Its own first."""
        return (*([self.own] if self.own else []), *self.adopted)


def places(run: RunFolder) -> Places:
    """Where a run's checkpoints lie beside its folder."""
    return Places.model_validate(read_json(run.elsewhere) or {})


def place_of(url: str, storage: str | None, job_id: str, run: str) -> Place:
    """A run's own place below the URL of its spec."""
    return Place(url=f"{url.rstrip('/')}/{job_id}/{run}", storage=storage)


def begin_at(run: RunFolder, own: Place | None) -> Places:
    """Note where a run writes from now on; what it wrote elsewhere stays readable."""
    known = places(run)
    if own == known.own:
        return known
    after = Places(own=own, adopted=tuple(place for place in known.all if place != own))
    write_json(run.elsewhere, after.model_dump())
    return after


def adopt_places(before: RunFolder, after: RunFolder) -> None:
    """Let a run that has not begun go on from what another has elsewhere."""
    adopted = places(before).all
    if adopted:
        write_json(after.elsewhere, Places(own=places(after).own, adopted=adopted).model_dump())


def named(runs: Iterable[RunFolder], home: Home) -> Iterator[Place]:
    """What these runs have elsewhere, and no other run of the lab names."""
    runs = list(runs)
    own = {place for run in runs for place in places(run).all}
    if own:
        skipped = {run.root for run in runs}
        others = (run for job in _jobs(home) for run in job.each_run() if run.root not in skipped)
        yield from sorted(
            own.difference(*(places(run).all for run in others)), key=lambda place: place.url
        )


def discard(runs: Iterable[RunFolder], settings: Settings, project: str) -> list[str]:
    """Remove what these runs alone have elsewhere; sentences on what could not be, and stays.

    DataAway where a place does not answer now: then it is to be done again.
    """
    left = []
    for place in named(runs, settings.folders):
        try:
            place.empty(settings, project)
        except (DataError, SettingsError, OSError) as error:
            left.append(f"{place.url} stays: {error}")
    return left


def _jobs(home: Home) -> Iterator[JobFolder]:
    for root in home.jobs.iterdir() if home.jobs.is_dir() else ():
        if not root.name.startswith(GONE):
            yield JobFolder(root)
