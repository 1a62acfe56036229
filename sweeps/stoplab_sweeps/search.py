"""Adaptive search by Optuna: the next point as a function of the ledger alone.

A study is built in memory for each suggestion and told all that the ledger knows, with a seed of
its own; so a killed driver goes on where it was, and a search with one run at a time gives the
same points however often it was interrupted.
"""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from statistics import fmean
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState, create_trial

from stoplab_platform.ledger import DONE, Cell, CellState
from stoplab_platform.specs import SweepSpec
from stoplab_platform.specs.sweep import Axis
from stoplab_sweeps.cells import by_point, cells_at, judged_alike
from stoplab_sweeps.space import TRIES, Point, point_id

log = logging.getLogger("stoplab")

Standing = tuple[TrialState, dict[str, Any]]
"""What became of a point: Optuna's state for it, and the value or values beside that."""


def propose(spec: SweepSpec, cells: Sequence[Cell]) -> list[Cell]:
    """Cells of the next point, all its replicates; none when the search has had its samples.

    It gives up after `TRIES` points in a row that cannot run, or that were there already.
    """
    groups = by_point(cells)
    can_run = [any(c.state is not CellState.INFEASIBLE for c in group) for group in groups]
    assert spec.search.samples is not None, "the spec checks itself"
    if sum(can_run) >= spec.search.samples:
        return []
    if len(can_run) >= TRIES and not any(can_run[-TRIES:]):
        log.warning("the search ends early: its last %d points could not run", TRIES)
        return []
    known = {point_id(group[0].point) for group in groups}
    for attempt in range(TRIES):
        point = suggest(spec, groups, attempt)
        if point_id(point) not in known:
            return cells_at(spec, point, len(groups) * spec.replicates)
    log.warning("the search ends early: it finds no new points in this space")
    return []


def suggest(spec: SweepSpec, groups: Sequence[Sequence[Cell]], attempt: int = 0) -> Point:
    """A point, given what became of the others; ``attempt`` gives another one."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    axes = {path: _distribution(axis) for path, axis in spec.space.items()}
    entropy = [spec.search.seed, len(groups), attempt]
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study = optuna.create_study(
            direction="maximize" if spec.objective.mode == "max" else "minimize",
            sampler=_sampler(spec, seed),
        )
        study.add_trials(_told(spec, axes, groups))
        params = study.ask(axes).params
    return {path: _value(axis, params[path]) for path, axis in spec.space.items()}


def _sampler(spec: SweepSpec, seed: int) -> optuna.samplers.BaseSampler:
    if spec.search.sampler == "gp":
        return optuna.samplers.GPSampler(seed=seed)
    # Noise and masking act together, so they are drawn together; running points count as bad.
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)


def _told(
    spec: SweepSpec, axes: dict[str, BaseDistribution], groups: Sequence[Sequence[Cell]]
) -> list[FrozenTrial]:
    """What Optuna hears of the points so far; nothing of one that lies outside the axes."""
    alike = {cell.id for cell in judged_alike([cell for group in groups for cell in group])}
    groups = [kept for group in groups if (kept := [c for c in group if c.id in alike])]
    standings = [_standing(spec, group) for group in groups]
    if spec.search.sampler == "gp":
        standings = _all_complete(standings, worst=min if spec.objective.mode == "max" else max)
    told = []
    for group, (state, value) in zip(groups, standings, strict=True):
        point = group[0].point
        params = {path: _param(axis, point.get(path)) for path, axis in spec.space.items()}
        with suppress(ValueError):  # Optuna checks what each axis holds
            told.append(create_trial(params=params, distributions=axes, state=state, **value))
    return told


def _standing(spec: SweepSpec, group: Sequence[Cell]) -> Standing:
    """A point's value is the mean over its replicates."""
    metric = spec.objective.metric
    values = [c.metrics[metric] for c in group if metric in c.metrics]
    if any(cell.state not in {*DONE, CellState.FAILED} for cell in group):
        return TrialState.RUNNING, {}
    if any(cell.state is CellState.PRUNED for cell in group):
        epoch = max((c.pruned_epoch for c in group if c.pruned_epoch is not None), default=0)
        return TrialState.PRUNED, {"intermediate_values": {epoch: fmean(values)} if values else {}}
    if all(cell.state is CellState.INFEASIBLE for cell in group):
        return TrialState.PRUNED, {}  # so TPE keeps away from it
    return (TrialState.COMPLETE, {"value": fmean(values)}) if values else (TrialState.FAIL, {})


def _all_complete(
    standings: Sequence[Standing], worst: Callable[[Iterable[float]], float]
) -> list[Standing]:
    """Optuna's Gaussian process reads complete trials only, and would draw all others again.

    To it a point that failed, was pruned or cannot run is as bad as the worst that came through.
    """
    known = [value["value"] for state, value in standings if state is TrialState.COMPLETE]
    if not known:
        return list(standings)
    told: list[Standing] = []
    for state, value in standings:
        if state in (TrialState.PRUNED, TrialState.FAIL):
            last = value.get("intermediate_values", {}).values()
            state, value = TrialState.COMPLETE, {"value": worst([*known, *last])}
        told.append((state, value))
    return told


def _distribution(axis: Axis) -> BaseDistribution:
    if axis.uniform is not None:
        return FloatDistribution(*axis.uniform)
    if axis.loguniform is not None:
        return FloatDistribution(*axis.loguniform, log=True)
    if axis.int_ is not None:
        return IntDistribution(*axis.int_)
    return CategoricalDistribution(list(range(len(axis.examples()))))  # values may be lists


def _param(axis: Axis, value: Any) -> Any:
    """A point's value as Optuna knows it; None where the axis does not hold it."""
    if axis.grid is None and axis.choice is None:
        return value
    places = itertools.compress(itertools.count(), (value == v for v in axis.examples()))
    return next(places, None)


def _value(axis: Axis, param: Any) -> Any:
    return param if axis.grid is None and axis.choice is None else axis.examples()[param]
