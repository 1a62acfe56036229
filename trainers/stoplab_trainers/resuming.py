"""Where a run's weights begin: its own checkpoint, another run's end, a file, or its seed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from stoplab_platform.errors import CheckpointError, SpecError
from stoplab_platform.files import read_json
from stoplab_platform.paths import RunFolder
from stoplab_platform.specs import RunSpec, load_spec
from stoplab_platform.tracking import flatten
from stoplab_trainers import checkpoint
from stoplab_trainers.loop import Run, World
from stoplab_trainers.summary import summary_of
from stoplab_trainers.weights.start import start_from

log = logging.getLogger("stoplab.train")

T = TypeVar("T")


@dataclass(frozen=True)
class Leg:
    """A part of a run's epochs, which may go on from another run's weights."""

    until_epoch: int
    """It ends when so many of the run's epochs are done."""
    after: Path | None = None
    """Folder of the finished run whose last checkpoint it starts from; None: it starts anew."""


def begin(run: Run, folder: RunFolder, owner: dict[str, str], leg: Leg | None) -> dict[str, str]:
    """Load what the run goes on from; `init_from`: sha256 of the weights it once began from.

    A run that goes on has that from its checkpoint: another file may lie at that path by now.
    """
    sha256 = ""
    run.bad.keep_in(folder.bad_samples, run.world.rank)

    def go_on(saved: checkpoint.Saved, mine: bool = True) -> tuple[dict[str, str], str]:
        given, sha256 = _given(saved), checkpoint.manifest(saved)["sha256"]
        try:
            run.load(*checkpoint.load(saved, identity=owner | given if mine else None))
        except checkpoint.Foreign as error:
            raise CheckpointError(f"{error}; {_changed(run.spec, folder)}") from error
        return given, sha256

    found = _newest(run.world, folder, go_on)
    if found is None and (was := (read_json(folder.progress) or {}).get("step")):
        log.warning("no checkpoint is left of this run, which was at step %d: it starts anew", was)
    if found:
        given, sha256 = found
        log.info("resumed at step %d of %d", run.step, run.total_steps)
    elif leg and leg.after:
        parent = RunFolder(leg.after)
        found = _newest(run.world, parent, partial(go_on, mine=False))
        if found is None:
            raise CheckpointError(f"{leg.after} holds no checkpoint to go on from")
        given, sha256 = found
        before = summary_of(parent)
        if before is None or before.steps != run.step:
            raise CheckpointError(
                f"step {run.step}, the newest checkpoint, is not the end of the run that "
                f"{leg.after} holds"
            )
        log.info("goes on from %s at step %d", leg.after.name, run.step)
    elif start := run.spec.model.init_from:
        model = run.objective.build(run.spec)
        target = run.objective.target(model.encoder)
        source = start_from(start, model, target, run.spec.data.storage)
        given, sha256 = {"init_from": source.sha256}, source.sha256
        run.begin_from(model, target)
        log.info("weights from %s (%s)", start.spelled, source.layout)
    else:
        given = {}
    _agree(run.world, sha256)
    return given


def descent(leg: Leg | None) -> dict[str, Any]:
    """What the weights of a leg also depend on."""
    if leg is None:
        return {}
    before = summary_of(RunFolder(leg.after)) if leg.after else None
    after = before.run_digest if before else None
    return {"until_epoch": leg.until_epoch, "after": after}


def _newest(world: World, folder: RunFolder, use: Callable[[checkpoint.Saved], T]) -> T | None:
    """`checkpoint.newest` among those that the first rank lists; all ranks call.

    To another one a file system over a network may still show an older folder.
    """
    stores = checkpoint.stores(folder)
    seen = checkpoint.listed(stores) if world.rank == 0 else []
    told = world.from_first([(stores.index(saved.store), saved.name) for saved in seen])
    known = [checkpoint.Saved(stores[place], name) for place, name in told]
    return checkpoint.newest(stores, use, known)


def _changed(spec: RunSpec, folder: RunFolder) -> str:
    """What makes a folder's run another one, for people."""
    try:
        before = load_spec(folder.spec)
    except SpecError as error:  # of another version of stoplab, or gone
        return f"what has changed cannot be told: {error}"
    assert isinstance(before, RunSpec)
    then, now = flatten(before.decisive()), flatten(spec.decisive())
    names = sorted(name for name in then | now if then.get(name) != now.get(name))
    if not names:
        return "what the shards of data.train hold has changed since it began"
    then, now = flatten(before.plain()), flatten(spec.plain())
    told = (f"{name} was {then.get(name)}, is {now.get(name)}" for name in names)
    return f"changed since it began: {', '.join(told)}"


def _given(saved: checkpoint.Saved) -> dict[str, str]:
    """What a checkpoint's run began from."""
    told = checkpoint.manifest(saved)["identity"]
    return {"init_from": told["init_from"]} if "init_from" in told else {}


def _agree(world: World, sha256: str) -> None:
    """CheckpointError on every rank where they go on from unlike files ("": from none).

    Each reads for itself, and nobody would see it later: a folder to which another run still adds
    checkpoints, a path that is another file on another node, a URL's file that was replaced.
    """
    if world.size == 1:
        return
    digest = bytearray(bytes.fromhex(sha256) or bytes(32))
    own = torch.frombuffer(digest, dtype=torch.uint8).to(world.device)
    each = [torch.empty_like(own) for _ in range(world.size)]
    dist.all_gather(each, own)
    found = [bytes(one.tolist()).hex() for one in each]
    if len(set(found)) > 1:
        told = ", ".join(f"rank {rank} {one}" for rank, one in enumerate(found))
        raise CheckpointError(f"the workers found unlike weights to start from; sha256 by {told}")
