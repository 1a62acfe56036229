"""A comparison's result: from a table of blocks and arms to one JSON object.

The same schema everywhere: REST, files, command line. `compare` knows only numbers, so that a
table from anywhere can be judged; `result` adds what stoplab knows about its own runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, stdev
from typing import Any

from stoplab_platform.ledger import Cell, CellState
from stoplab_platform.specs import ComparisonSpec
from stoplab_platform.specs.baselines import baseline
from stoplab_platform.specs.comparison import Spending
from stoplab_sweeps.certificate import certify
from stoplab_sweeps.paired import difference, holm
from stoplab_sweeps.per_image import Told, per_image
from stoplab_sweeps.sequential import Look, look_at
from stoplab_sweeps.wording import sentence, warnings

Table = Mapping[Any, Mapping[str, float | None]]
"""Block (its seed, or any name) to arm to the metric's value; None, NaN or absent is missing."""


def compare(
    table: Table,
    arms: Sequence[str],
    *,
    metric: str,
    min_effect: float,
    alpha: float = 0.05,
    looks: Sequence[int] | None = None,
    spending: Spending = "obrien_fleming",
    secondary: Mapping[str, Table] | None = None,
) -> dict[str, Any]:
    """Judge every arm against the first one; JSON types, missing numbers are null.

    A block counts for an arm where both that arm and the reference have a value; half blocks
    are listed and left out, as are blocks after the last look's. The top level is the first arm
    after the reference; `comparisons` holds each arm. `secondary` tables are of other metrics,
    and get no verdict. The p values are adjusted by Holm over all arms and metrics. With
    ``looks`` there is a verdict only at these
    numbers of blocks.
    """
    reference, *others = arms
    values = {block: {arm: _number(row.get(arm)) for arm in arms} for block, row in table.items()}
    counting = _to_last_look(values, looks[-1]) if looks else values
    found = {}
    for arm in others:
        a, b = _pairs(counting, reference, arm)
        look = look_at(len(a), looks, spending, alpha=alpha) if looks else None
        found[arm] = _judge(a, b, min_effect, alpha, look)
    besides = [
        {"metric": name, "arm": arm, **_besides(*_pairs(rows, reference, arm))}
        for name, rows in (secondary or {}).items()
        for arm in others
    ]
    adjusted = holm([one["p_t"] for one in (*found.values(), *besides)])
    for one, p in zip((*found.values(), *besides), adjusted, strict=True):
        one["p_holm"] = p
    return {
        "metric": metric,
        "arms": {arm: _summary(_counted(counting, arm, arms)) for arm in arms},
        "reference": reference,
        "other": others[0],
        "min_effect": min_effect,
        "alpha": alpha,
        **found[others[0]],
        "blocks": [_block(seed, row, arms) for seed, row in values.items()],
        "complete": all(value is not None for row in values.values() for value in row.values()),
        "comparisons": found,
        "secondary": besides,
    }


def result(
    spec: ComparisonSpec,
    cells: Iterable[Cell],
    *,
    told: Told | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The whole result of a comparison, with certificate, baseline, context and a sentence.

    ``told`` is what the runs told of each test image (`per_image.read_right`), ``notes`` are
    warnings from elsewhere. Where the pairing is broken the verdict is `refused`, whatever the
    numbers say.
    """
    by_seed: dict[int, dict[str, Cell]] = {seed: {} for seed in spec.seeds}
    for cell in cells:
        if cell.state is CellState.SUCCEEDED:
            by_seed[cell.seed][str(cell.arm)] = cell
    primary, arms = spec.primary, list(spec.arms)
    judged = compare(
        _table(by_seed, primary.metric),
        arms,
        metric=primary.metric,
        min_effect=primary.min_effect,
        alpha=primary.alpha,
        looks=primary.looks,
        spending=primary.spending,
        secondary={name: _table(by_seed, name) for name in _other_metrics(spec, by_seed)},
    )
    for block in judged["blocks"]:
        row = by_seed[block["seed"]]
        block["run_ids"] = {arm: row[arm].mlflow_run_id if arm in row else None for arm in arms}
    done = {seed: list(row.values()) for seed, row in by_seed.items() if len(row) > 1}
    judged["certificate"] = certify(spec, done)
    if done and not judged["certificate"]["passed"]:
        for part in (judged, *judged["comparisons"].values()):
            part["verdict"] = "refused"
    judged["baseline"] = baseline(spec.arm(spec.reference, spec.seeds[0]))
    judged["context"] = _context(
        primary.metric, [c for row in by_seed.values() for c in row.values()]
    )
    judged["per_image"] = per_image(told or {}, arms)
    judged["warnings"] = [*warnings(judged), *notes]
    judged["sentence"] = sentence(judged)
    return judged


def _to_last_look(values: Table, most: int) -> Table:
    """The blocks up to the last that counts: the first ``most`` that hold every arm."""
    whole = [block for block, row in values.items() if None not in row.values()]
    if len(whole) <= most:
        return values
    blocks = list(values)
    return {block: values[block] for block in blocks[: blocks.index(whole[most - 1]) + 1]}


def _pairs(values: Table, reference: str, arm: str) -> tuple[list[float], list[float]]:
    """Both arms in the blocks that hold both."""
    rows = [(_number(row.get(reference)), _number(row.get(arm))) for row in values.values()]
    pairs = [(a, b) for a, b in rows if a is not None and b is not None]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _judge(
    a: Sequence[float], b: Sequence[float], min_effect: float, alpha: float, look: Look | None
) -> dict[str, Any]:
    level = look.alpha_here if look else None
    found = difference(a, b, min_effect=min_effect, alpha=alpha, level=level)
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(found).items()}
    if look and look.look is None:
        plain |= {"verdict": "inconclusive", "ci_alpha": None}
    return {**plain, "sequential": asdict(look) if look else None}


def _besides(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """What is told of a metric that does not decide."""
    found = difference(a, b, min_effect=0)
    return {
        "delta": found.delta,
        "ci95": list(found.ci95) if found.ci95 else None,
        "p_t": found.p_t,
        "n_blocks": found.n_blocks,
        "d_z": found.d_z,
    }


def _table(by_seed: Mapping[int, Mapping[str, Cell]], metric: str) -> Table:
    return {
        seed: {arm: cell.metrics.get(metric) for arm, cell in row.items()}
        for seed, row in by_seed.items()
    }


def _other_metrics(spec: ComparisonSpec, by_seed: Mapping[int, Mapping[str, Cell]]) -> list[str]:
    """Metrics of the test split that every arm has measured, but for the one that decides."""
    measured = {arm: set[str]() for arm in spec.arms}
    for row in by_seed.values():
        for arm, cell in row.items():
            measured[arm].update(cell.metrics)
    shared = set.intersection(*measured.values()) - {spec.primary.metric}
    return sorted(name for name in shared if name.startswith("test/"))


def _number(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _counted(values: Table, arm: str, arms: Sequence[str]) -> list[float]:
    """Values of an arm in the blocks that count for it; for the reference, for any arm."""
    reference, *others = arms
    partners = others if arm == reference else [reference]
    return [
        value
        for row in values.values()
        if (value := row[arm]) is not None and any(row[one] is not None for one in partners)
    ]


def _summary(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": fmean(values) if values else None,
        "std": stdev(values) if len(values) > 1 else None,
        "n": len(values),
    }


def _block(seed: int | str, row: Mapping[str, float | None], arms: Sequence[str]) -> dict[str, Any]:
    reference, *others = arms
    deltas = {
        arm: None if (a := row[reference]) is None or (b := row[arm]) is None else b - a
        for arm in others
    }
    return {"seed": seed, "values": dict(row), "delta": deltas[others[0]], "deltas": deltas}


def _context(metric: str, cells: Sequence[Cell]) -> dict[str, Any]:
    """The same metric of the untrained encoder and of raw pixels, over all runs."""
    name = metric.partition("/")[2]
    rows = {key: [c.metrics[key] for c in cells if key in c.metrics]
            for key in (f"init/{name}", f"pixels/{name}")}  # fmt: skip
    return {key: _summary(values) for key, values in rows.items() if values}
