"""How much each axis of a sweep decides, by Optuna's fANOVA."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import pstdev
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
)
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

FEWEST = 6  # measured runs below which shares would be guesses
FLAT = 1e-12


def importance(measured: Sequence[tuple[Mapping[str, Any], float]]) -> dict[str, float] | None:
    """Share of the values' variance that each axis explains (fANOVA, Hutter et al. 2014).

    ``measured``: (point, value) of each run. None where fewer than two axes vary, or the runs
    are too few or all alike.
    """
    axes = _axes([point for point, _ in measured])
    if len(measured) < FEWEST or len(axes) < 2 or pstdev(v for _, v in measured) < FLAT:
        return None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for point, value in measured:
        params = {name: _word(point[name], axes[name]) for name in axes}
        study.add_trial(optuna.create_trial(params=params, distributions=axes, value=value))
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {name: round(float(share), 4) for name, share in shares.items()}


def _axes(points: Sequence[Mapping[str, Any]]) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {}
    shared = [name for name in points[0] if all(name in p for p in points)] if points else []
    for name in shared:
        values = [point[name] for point in points]
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            low, high = float(min(values)), float(max(values))
            if high > low:
                found[name] = FloatDistribution(low, high)
        elif len(words := sorted({json.dumps(v, sort_keys=True) for v in values})) > 1:
            found[name] = CategoricalDistribution(words)
    return found


def _word(value: Any, axis: BaseDistribution) -> Any:
    is_number = isinstance(axis, FloatDistribution)
    return float(value) if is_number else json.dumps(value, sort_keys=True)
