"""Where a study stops, as it stands now: limits may change while it runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import ValidationError

from stoplab_platform.files import read_json
from stoplab_platform.ledger import Cell, CellState
from stoplab_platform.paths import JobFolder
from stoplab_platform.specs.run import ComputeSpec
from stoplab_platform.specs.sweep import LimitsSpec

log = logging.getLogger("stoplab")


def current_limits(limits: LimitsSpec, folder: JobFolder) -> LimitsSpec:
    """The spec's limits under those of the job's folder, read anew at each call."""
    changed = read_json(folder.limits) or {}
    try:
        return LimitsSpec.model_validate({**limits.plain(), **changed})
    except ValidationError as error:  # the API checks them, but a file can be edited
        log.warning("%s is passed over: %s", folder.limits, error)
        return limits


def spent(
    limits: LimitsSpec, compute: ComputeSpec, cells: Sequence[Cell], now: datetime | None = None
) -> str | None:
    """Which limit is reached, in words; None while there is none.

    Hours on the clock count from the first start of a cell of this job, GPU-hours while cells
    run; those that an earlier job ran cost nothing here. (`limits.trials` is `full`'s: it keeps
    no begun cell from going on.)
    """
    now = now or datetime.now(UTC)
    own = [cell for cell in cells if not cell.adopted]
    began = min((cell.started_at for cell in own if cell.started_at), default=now)
    wall = (now - began).total_seconds() / 3600
    if limits.wall_hours is not None and wall >= limits.wall_hours:
        return f"limits.wall_hours ({limits.wall_hours:g}) is reached"
    hours = sum(cell.seconds(now) for cell in own) / 3600
    gpu_hours = hours * compute.gpus_per_worker * compute.workers
    if limits.gpu_hours is not None and gpu_hours >= limits.gpu_hours:
        return f"limits.gpu_hours ({limits.gpu_hours:g}) is reached"
    return None


def full(limits: LimitsSpec, cells: Sequence[Cell]) -> str | None:
    """Whether as many runs have begun as may, adopted ones among them; in words."""
    # One that was just given counts before it has started: several places may be free at once.
    begun = [c for c in cells if c.started_at is not None or c.state is CellState.RUNNING]
    if len(begun) >= limits.trials:
        return f"limits.trials ({limits.trials}) is reached"
    return None
