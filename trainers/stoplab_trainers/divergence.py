"""What is known of a run whose loss is no number any more: since when, and by which samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stoplab_platform.errors import DataAway, DataError
from stoplab_platform.files import write_json
from stoplab_platform.paths import RunFolder
from stoplab_trainers import checkpoint
from stoplab_trainers.loop import Run
from stoplab_trainers.measure import Diverged


@contextmanager
def explained(run: Run, folder: RunFolder) -> Iterator[None]:
    """A Diverged that says more, and leaves it all in the run's folder; all ranks enter.

    The first one finds it out, and the others wait for that: when a worker ends, Ray Train kills
    the rest within seconds, and checkpoints may take minutes to read.
    """
    try:
        yield
    except Diverged as error:
        told = _told(run, folder, error) if run.world.rank == 0 else ""
        raise Diverged(run.world.from_first(told)) from error


def suspects(run: Run, folder: RunFolder) -> dict[str, Any]:
    """First and last step (from 1) since the last one that is known to be good, names of their
    samples as the plan has them, and the newest checkpoint of numbers, or `why` it is not known."""
    first, last = run.checked + 1, run.step
    good: checkpoint.Saved | None = None
    why: dict[str, str] = {}
    try:
        good = checkpoint.sound(checkpoint.stores(folder))
    except (DataAway, DataError, OSError) as error:  # the run still ended as it did
        why = {"why": f"not known ({error})"}
    return {
        "steps": [first, last],
        "samples": {
            str(step): [run.shards.name(int(one)) for one in run.plan.ids(step - 1)]
            for step in range(first, last + 1)
        },
        "checkpoint": good.name if good else None,
        **why,
    }


def _told(run: Run, folder: RunFolder, error: Diverged) -> str:
    found = suspects(run, folder)
    write_json(folder.divergence, {"message": str(error), **found})
    first, last = found["steps"]
    left = found["checkpoint"] or found.get("why") or "none"
    return (
        f"{error}; all losses up to step {first - 1} were numbers. The samples of the steps "
        f"{first} to {last} are listed in {folder.divergence}; last good checkpoint: {left}"
    )
