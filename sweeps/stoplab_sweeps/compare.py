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
from stoplab_sweeps.certificate import baseline, certify
from stoplab_sweeps.paired import Difference, difference, holm

Table = Mapping[Any, Mapping[str, float | None]]
"""Block (its seed, or any name) to arm to the metric's value; None, NaN or absent is missing."""


def compare(
    table: Table, arms: Sequence[str], *, metric: str, min_effect: float, alpha: float = 0.05
) -> dict[str, Any]:
    """Judge every arm against the first one; JSON types, missing numbers are null.

    A block counts for an arm where both that arm and the reference have a value; half blocks
    are listed and left out. The top level is the first arm after the reference; `comparisons`
    holds each arm, with p values adjusted by Holm over them.
    """
    reference, *others = arms
    values = {block: {arm: _number(row.get(arm)) for arm in arms} for block, row in table.items()}
    found: dict[str, Difference] = {}
    for arm in others:
        rows = [(row[reference], row[arm]) for row in values.values()]
        pairs = [(a, b) for a, b in rows if a is not None and b is not None]
        a, b = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        found[arm] = difference(a, b, min_effect=min_effect, alpha=alpha)
    adjusted = holm([one.p_t for one in found.values()])
    comparisons = {
        arm: {**_plain(one), "p_holm": p}
        for (arm, one), p in zip(found.items(), adjusted, strict=True)
    }
    return {
        "metric": metric,
        "arms": {arm: _summary(_counted(values, arm, arms)) for arm in arms},
        "reference": reference,
        "other": others[0],
        "min_effect": min_effect,
        "alpha": alpha,
        **comparisons[others[0]],
        "blocks": [_block(seed, row, arms) for seed, row in values.items()],
        "comparisons": comparisons,
    }


def result(spec: ComparisonSpec, cells: Iterable[Cell]) -> dict[str, Any]:
    """The whole result of a comparison, with certificate, baseline, context and a sentence.

    Where the pairing is broken the verdict is `refused`, whatever the numbers say.
    """
    by_seed: dict[int, dict[str, Cell]] = {seed: {} for seed in spec.seeds}
    for cell in cells:
        if cell.state is CellState.SUCCEEDED:
            by_seed[cell.seed][str(cell.arm)] = cell
    primary, arms = spec.primary, list(spec.arms)
    table = {
        seed: {arm: cell.metrics.get(primary.metric) for arm, cell in row.items()}
        for seed, row in by_seed.items()
    }
    judged = compare(
        table, arms, metric=primary.metric, min_effect=primary.min_effect, alpha=primary.alpha
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
    judged["complete"] = all(len(row) == len(arms) for row in by_seed.values())
    judged["sentence"] = sentence(judged)
    return judged


def sentence(judged: Mapping[str, Any]) -> str:
    """The verdict in plain words, without its full stop."""
    verdict, other, reference = judged["verdict"], judged["other"], judged["reference"]
    if verdict == "refused":
        return f"no verdict, the pairing is broken: {judged['certificate']['reasons'][0]}"
    if judged["ci_alpha"] is None:
        return f"inconclusive: {judged['n_blocks']} complete block(s), two or more are needed"
    low, high = judged["ci_alpha"]
    level = f"{100 * (1 - judged['alpha']):g} %"
    seen = (
        f"{judged['metric']} {judged['delta']:+.4f}, {level} interval {low:+.4f} to {high:+.4f}, "
        f"{judged['n_blocks']} blocks"
    )
    if verdict in ("better", "worse"):
        return f"{other} is {verdict} than {reference}: {seen}"
    if verdict == "equivalent":
        return f"{other} and {reference} are equivalent within {judged['min_effect']:g}: {seen}"
    more = judged["more_seeds_for_80_power"]
    advice = (
        f"about {more} more seed{'s' if more > 1 else ''} for 80 % power"
        if more
        else "these seeds had 80 % power for a difference of this size"
        if more == 0
        else "no number of seeds can be named"
    )
    return f"inconclusive: {seen}; {advice}"


def _number(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _plain(found: Difference) -> dict[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(found).items()}


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
