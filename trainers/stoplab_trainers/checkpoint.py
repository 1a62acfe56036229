"""Checkpoints: whole or not there, checked by their own manifest, kept by number.

A checkpoint is a state (torch.save of tensors and plain data) and a manifest (its sha256 and size,
the step, whose it is) under the name of its step, `step-00000120`. Where they lie is a `Store`'s
matter: the run's folder, or what `checkpoint.url` names.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from stoplab_platform.elsewhere import Place, begin_at, place_of, places
from stoplab_platform.errors import CheckpointError, DataAway, DataError
from stoplab_platform.paths import RunFolder
from stoplab_platform.secret_store import Secrets
from stoplab_platform.settings import Settings
from stoplab_platform.specs import RunSpec
from stoplab_trainers.stores.base import Broken, Manifest, Store
from stoplab_trainers.stores.local import Local
from stoplab_trainers.stores.objects import Objects

log = logging.getLogger("stoplab.checkpoint")

T = TypeVar("T")
FORMAT = 1
NAME = re.compile(r"step-[0-9]+")
WEIGHTS = ("model", "target")
"""Of a run's state."""


class Foreign(CheckpointError):
    """A checkpoint belongs to another run."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint, as its store knows it; whether it is whole shows when it is read."""

    store: Store
    name: str

    def __str__(self) -> str:
        return self.store.spelled(self.name)

    @property
    def step(self) -> int:
        """Steps that its run had done."""
        return int(self.name[5:])


Where = Path | Sequence[Store]
"""Checkpoints of a run: a folder, or several stores, of which the first is written to."""


def stores(run: RunFolder) -> list[Store]:
    """Where a run's checkpoints lie. Raises DataError, SettingsError."""
    known = places(run)
    written = [_store(known.own)] if known.own else []
    return [*written, Local(run.checkpoints), *map(_store, known.adopted)]


def note_place(spec: RunSpec, run: RunFolder, job_id: str) -> None:
    """Say in a run's folder where it writes its checkpoints, for whoever looks for them.

    DataError where nothing can be written there, SettingsError where a secret is missing.
    """
    told = spec.checkpoint
    if told.url is None:
        begin_at(run, None)
        return
    own = place_of(told.url, told.storage or spec.data.storage, job_id, run.root.name)
    _store(own).probe()
    begin_at(run, own)


def there(where: Where) -> bool:
    """Whether there is any checkpoint, whole or not."""
    return bool(listed(where))


def save(
    where: Where, *, step: int, tensors: Mapping[str, Any], identity: Mapping[str, str], keep: int
) -> Saved:
    """Write the checkpoint of a step, keep the newest ``keep``; it is whole on return."""
    store, name = _stores(where)[0], f"step-{step:08d}"
    saved, there = Saved(store, name), store.tidy()
    if name in there:
        if _fault(saved) is None:
            return saved
        store.remove(name)
    store.write(name, tensors, {"format": FORMAT, "step": step, "identity": dict(identity)})
    _retain(store, {*there, name}, step, keep)
    return saved


def listed(where: Where) -> list[Saved]:
    """All checkpoints, whole or not, newest first; of one step, that of the earlier store."""
    return _by_step(Saved(store, name) for store in _stores(where) for name in store.names())


def newest(
    where: Where, use: Callable[[Saved], T], known: Sequence[Saved] | None = None
) -> T | None:
    """What ``use`` makes of the newest whole checkpoint, None where there is none at all.

    One that ``use`` finds `Broken` is passed over with a warning; CheckpointError when all are
    broken, so that a run never starts again at step 0 without being told to. Of a run that goes on,
    the newest may be taken away while it is read: then there are newer ones. ``known``: what is
    `listed`, where that was looked at already.
    """
    stores, broken = _stores(where), dict[Saved, str]()
    fresh = listed(stores) if known is None else known
    while fresh:
        for saved in fresh:
            try:
                return use(saved)
            except Broken as error:
                log.warning("checkpoint passed over: %s", error)
                broken[saved] = str(error)
        fresh = [saved for saved in listed(stores) if saved not in broken]
    if broken:
        raise CheckpointError(
            f"every checkpoint in {_spelled_places(stores)} is broken; move them away to start "
            "anew:\n  " + "\n  ".join(broken.values())
        )
    return None


def latest(where: Where) -> Saved | None:
    """The newest whole checkpoint, read and checked; as `newest`."""
    return newest(where, _checked)


def sound(where: Where) -> Saved | None:
    """The newest whole checkpoint whose weights are all numbers, None where there is none."""
    for saved in listed(where):
        try:
            _, weights = load_weights(saved)
        except CheckpointError:
            continue
        if all(value.isfinite().all() for part in weights.values() for value in part.values()):
            return saved
    return None


def meant(run: RunFolder, named: Path | None, use: Callable[[Saved], T]) -> T:
    """What ``use`` makes of the checkpoint that was named, else of the run's newest whole one.

    CheckpointError where there is none, or none is whole.
    """
    found = use(_saved(named)) if named else newest(stores(run), use)
    if found is None:
        raise CheckpointError(f"no checkpoint in {run.root}")
    return found


def load(saved: Saved | Path, *, identity: Mapping[str, str] | None) -> tuple[int, dict[str, Any]]:
    """Step and state of a checkpoint, on the CPU.

    Broken where it is not whole, Foreign where it belongs to another run than ``identity`` (None:
    any).
    """
    return _loaded(_saved(saved), identity, mapped=False)


def load_weights(saved: Saved | Path) -> tuple[int, dict[str, Any]]:
    """Step and weights (`model`, `target`) of a checkpoint of any run; CheckpointError.

    They are mapped from the file, and the optimiser's state is never read: copy them before the
    file may go.
    """
    step, state = _loaded(_saved(saved), None, mapped=True)
    return step, {name: state[name] for name in WEIGHTS}


def manifest(saved: Saved | Path) -> Manifest:
    """What a checkpoint says of itself: format, step, identity, sha256 and size of its state."""
    one = _saved(saved)
    return one.store.manifest(one.name)


def weights_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """The sha256 (hex) of names, types, shapes and values; the order does not matter."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        value = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _store(place: Place) -> Store:
    settings = Settings()
    place.check(settings)
    folder = place.local()
    if folder is not None:
        return Local(folder)
    options = Secrets(settings).options(place.storage) if place.storage else {}
    return Objects(place.url, options, settings.folders.cache, settings.cache_bytes)


def _stores(where: Where) -> Sequence[Store]:
    return [Local(where)] if isinstance(where, Path) else where


def _saved(saved: Saved | Path) -> Saved:
    return Saved(Local(saved.parent), saved.name) if isinstance(saved, Path) else saved


def _loaded(
    saved: Saved, identity: Mapping[str, str] | None, *, mapped: bool
) -> tuple[int, dict[str, Any]]:
    told = manifest(saved)
    if told.get("format") != FORMAT:
        raise CheckpointError(
            f"{saved} has format {told.get('format')}; this version of stoplab reads {FORMAT}"
        )
    with saved.store.state(saved.name, told) as path:
        if identity is not None and told["identity"] != dict(identity):
            raise Foreign(
                f"{saved} belongs to {_spelled(told['identity'])}, "
                f"this run is {_spelled(dict(identity))}"
            )
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise CheckpointError(f"{saved} holds what cannot be loaded: {error}") from error
    return int(told["step"]), state


def _retain(store: Store, names: Iterable[str], step: int, keep: int) -> None:
    """Delete what is older than the newest ``keep``, never the one just written.

    A later step can only be there when it was broken and the run went back behind it. What cannot
    be deleted now is told: the new one is whole, and the next save tries again.
    """
    saved = _by_step(Saved(store, name) for name in names)
    later = [one for one in saved if one.step > step]
    for one in [*later, *saved[len(later) + keep :]]:
        try:
            if one.step < step or _fault(one) is not None:
                store.remove(one.name)
        except (OSError, DataAway, DataError) as error:
            log.warning("%s stays for now: %s", one, error)


def _by_step(found: Iterable[Saved]) -> list[Saved]:
    named = [saved for saved in found if NAME.fullmatch(saved.name)]
    return sorted(named, key=lambda saved: saved.step, reverse=True)


def _checked(saved: Saved) -> Saved:
    with saved.store.state(saved.name, manifest(saved)):
        return saved


def _fault(saved: Saved) -> str | None:
    """Why a checkpoint cannot be trusted, None if it can."""
    try:
        _checked(saved)
    except Broken as error:
        return str(error)
    return None


def _spelled(identity: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(identity.items())) or "no run"


def _spelled_places(stores: Sequence[Store]) -> str:
    return ", ".join(store.spelled("").rstrip("/") for store in stores)
