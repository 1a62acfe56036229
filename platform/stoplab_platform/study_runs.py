"""A job's runs, for an estimate: how many, how many at a time, and which stand for all of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

from stoplab_platform.admission import demand, one_trial
from stoplab_platform.cost import coarse
from stoplab_platform.errors import SpecError
from stoplab_platform.masks import with_ratio
from stoplab_platform.resources import Resources
from stoplab_platform.specs import AnySpec, ComparisonSpec, RunSpec, SweepSpec, applied
from stoplab_platform.specs.masking import MaskingSpec, MultiblockMasking
from stoplab_platform.specs.sweep import MASKING_RATIO

CORNERS = 16
"""Most points of a sweep that are looked at: all of a small one, the ends of a larger one."""
COSTLY = ("model", "masking", MASKING_RATIO, "data.image_size", "optim.epochs", "compute")
"""Beginnings of swept fields that change what a run takes."""


def variants(spec: RunSpec | SweepSpec | ComparisonSpec) -> Iterator[RunSpec]:
    """Runs that stand for all of a job's."""
    if isinstance(spec, RunSpec):
        yield spec
    elif isinstance(spec, ComparisonSpec):
        yield from (spec.arm(name, spec.seeds[0]) for name in spec.arms)
    else:
        found = list(_corners(spec))
        yield from found or [spec.base]


def number(spec: RunSpec | SweepSpec | ComparisonSpec, capacity: Resources) -> tuple[int, int]:
    """Whole trainings in all (the legs of a population's member are one), and runs at a time."""
    if isinstance(spec, RunSpec):
        return 1, 1
    whole, trial = demand(spec, capacity), one_trial(spec).within(capacity)
    return min(spec.most_at_once(), spec.limits.trials), max(1, trial.times_in(whole))


def shorter(spec: AnySpec) -> float:
    """The least share of its epochs that a sweep's scheduler leaves (fraction)."""
    if not isinstance(spec, SweepSpec):
        return 1.0
    epochs, plan = spec.base.optim.epochs, spec.scheduler
    if plan.kind == "median":
        return (plan.grace_epochs + epochs) / (2 * epochs)
    if plan.kind != "asha":
        return 1.0
    # Successive halving: of those at a rung 1 / reduction_factor go on to the next.
    rung, alive, done = float(plan.grace_epochs), 1.0, 0.0
    run = rung
    while rung < epochs:
        alive /= plan.reduction_factor
        done, rung = rung, min(float(epochs), rung * plan.reduction_factor)
        run += alive * (rung - done)
    return run / epochs


def _corners(spec: SweepSpec) -> Iterator[RunSpec]:
    """Points of a sweep at which its runs differ in what they take; those that can run."""
    axes = {path: axis.examples() for path, axis in spec.space.items() if path.startswith(COSTLY)}
    if math.prod(len(values) for values in axes.values()) > CORNERS:
        axes = {path: (values[0], values[-1]) for path, values in axes.items()}
    if 2 ** len(axes) > CORNERS:
        axes = {}
    for point in product(*axes.values()):
        changes = dict(zip(axes, point, strict=True))
        ratio = changes.pop(MASKING_RATIO, None)
        try:
            run = applied(spec.base, changes, RunSpec)
            masking = run.masking if ratio is None else _at_ratio(run, ratio)
        except (SpecError, ValueError):
            continue  # a point that cannot run takes nothing
        yield run.model_copy(update={"masking": masking})


def _at_ratio(run: RunSpec, ratio: float) -> MaskingSpec:
    found = with_ratio(*coarse(run.masking, run.grid), ratio)
    if isinstance(found, MultiblockMasking):
        return run.masking.model_copy(update={"target": found.target})
    return found
