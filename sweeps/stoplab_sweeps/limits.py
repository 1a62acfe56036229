"""Where a study stops, as it stands now: limits may change while it runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import ValidationError

from stoplab_platform.ledger import Cell
from stoplab_platform.paths import JobFolder, read_json
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

    Hours count from the first start of a cell of this job; those that an earlier job ran cost
    nothing here. (`limits.trials` is `full`'s: it keeps no begun cell from going on.)
    """
    now = now or datetime.now(UTC)
    spans = [(c.started_at, c.finished_at or now) for c in cells if c.started_at and not c.adopted]
    hours = [(end - begin).total_seconds() / 3600 for begin, end in spans]
    wall = (now - min(begin for begin, _ in spans)).total_seconds() / 3600 if spans else 0.0
    if limits.wall_hours is not None and wall >= limits.wall_hours:
        return f"limits.wall_hours ({limits.wall_hours:g}) is reached"
    gpu_hours = sum(hours) * compute.gpus_per_worker * compute.workers
    if limits.gpu_hours is not None and gpu_hours >= limits.gpu_hours:
        return f"limits.gpu_hours ({limits.gpu_hours:g}) is reached"
    return None


def full(limits: LimitsSpec, cells: Sequence[Cell]) -> str | None:
    """Whether as many runs have begun as may, adopted ones among them; in words."""
    if sum(cell.started_at is not None for cell in cells) >= limits.trials:
        return f"limits.trials ({limits.trials}) is reached"
    return None
