"""What a study leaves for people: tables for the console, Markdown, and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from stoplab_platform.ledger import Cell, CellState
from stoplab_platform.specs import ComparisonSpec, SweepSpec
from stoplab_sweeps import words
from stoplab_sweeps.cells import comparable, judged_alike, name_of
from stoplab_sweeps.space import label

Row = Sequence[str]

REASON_ROOM = 160  # characters of an error in a table


def table(head: Row, rows: Sequence[Row]) -> str:
    """Aligned columns for a terminal or a log, numbers and words alike to the left."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    padded = ("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True))
              for line in lines)  # fmt: skip
    return "\n".join(line.rstrip() for line in padded)


def comparison_rows(judged: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Head and body of the table of blocks, with the means as its last row."""
    arms = list(judged["arms"])
    others = [arm for arm in arms if arm != judged["reference"]]
    head = ["seed", *arms, *(f"{arm} - {judged['reference']}" for arm in others)]
    rows: list[Row] = [
        [str(block["seed"]), *(_number(block["values"][arm]) for arm in arms),
         *(_signed(block["deltas"][arm]) for arm in others)]
        for block in judged["blocks"]
    ]  # fmt: skip
    means = [_number(judged["arms"][arm]["mean"]) for arm in arms]
    deltas = [_signed(judged["comparisons"][arm]["delta"]) for arm in others]
    return head, [*rows, ["mean", *means, *deltas]]


def comparison_table(judged: Mapping[str, Any]) -> str:
    """Every block with its values, the means, and what untrained and raw pixels reach."""
    head, rows = comparison_rows(judged)
    context = [
        f"{name}: {_number(row['mean'])}  (the same for every arm: no training)"
        for name, row in judged["context"].items()
    ]
    return "\n".join([table(head, rows), *context, "", judged["sentence"] + "."])


def comparison_markdown(spec: ComparisonSpec, judged: Mapping[str, Any]) -> str:
    """The comparison as a page."""
    head, rows = comparison_rows(judged)
    certificate = judged["certificate"]
    pairing = f"{certificate['pairing']}, proved" if certificate["passed"] else "broken"
    facts = [
        f"- pairing: {pairing}",
        f"- baseline: {judged['baseline'] or 'none of the named ones'}",
        *(f"- {line}" for line in (words.looks(judged),) if line),
        *(f"- note: {warning}" for warning in judged.get("warnings") or []),
    ]
    return (
        "\n".join(
            [
                f"# {spec.name}",
                "",
                f"**{judged['sentence']}.**",
                "",
                _markdown(head, rows),
                "",
                *facts,
                "",
                f"## Against {judged['reference']}",
                "",
                _markdown(words.PRIMARY, words.primary_rows(judged)),
                "",
                _markdown(*facts_rows(judged)),
                *_more(judged),
            ]
        )
        + "\n"
    )


def facts_rows(judged: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """Every statistic, a column an arm."""
    arms = list(judged["comparisons"])
    told = [words.facts(judged["comparisons"][arm], judged, arm) for arm in arms]
    return ("", *arms), [
        (of_all[0].name, *(fact.value for fact in of_all)) for of_all in zip(*told, strict=True)
    ]


def facts_table(judged: Mapping[str, Any]) -> str:
    """The same for a terminal."""
    return table(*facts_rows(judged))


def sweep_table(spec: SweepSpec, cells: Sequence[Cell]) -> str:
    """One row a point, best first: mean and spread over its seeds; of a population, as it ended."""
    metric, best_first = spec.objective.metric, spec.objective.mode == "max"
    rows = []
    for point, group in _by_point(comparable(cells)).items():
        values = [cell.metrics[metric] for cell in group if metric in cell.metrics]
        states = {cell.state for cell in group if cell.state is not CellState.SUCCEEDED}
        note = ", ".join(sorted(state.lower() for state in states))
        spread = _number(stdev(values)) if len(values) > 1 else ""
        rows.append((fmean(values) if values else None, point, spread, str(len(values)), note))
    rows.sort(key=lambda row: (row[0] is None, (row[0] or 0.0) * (-1 if best_first else 1)))
    head = ("point", metric, "std", "seeds", "")
    return table(head, [(point, _number(mean), *rest) for mean, point, *rest in rows])


def failures(cells: Sequence[Cell]) -> str:
    """What failed or could not run, and why; empty where nothing did."""
    bad = [cell for cell in cells if cell.state in (CellState.FAILED, CellState.INFEASIBLE)]
    if not bad:
        return ""
    rows = [(name_of(c), c.state.value, (c.error or "").splitlines()[0][:REASON_ROOM] if c.error
             else "") for c in bad]  # fmt: skip
    return table(("run", "state", "why"), rows)


def judged_apart(cells: Sequence[Cell]) -> str:
    """What is left out because it was judged otherwise than the latest run; empty for nothing."""
    kept = {cell.id for cell in judged_alike(cells)}
    if not (apart := [cell for cell in cells if cell.id not in kept]):
        return ""
    told = sorted({cell.certificate.get("protocols", "none told") for cell in apart})
    return (
        f"{len(apart)} runs were judged by other versions of the protocols ({'; '.join(told)}), "
        "other options or other images than the latest one, and are left out; run them again to "
        "have them in one table"
    )


def _by_point(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        leg = "" if cell.generation is None else f"  {cell.id}"
        found.setdefault(f"{label(cell.point)}{leg}", []).append(cell)
    return found


def _more(judged: Mapping[str, Any]) -> list[str]:
    """The other metrics and the images, where they are known."""
    lines: list[str] = []
    if others := words.secondary_rows(judged):
        lines += ["", "## The other metrics", "", _markdown(words.SECONDARY, others)]
    if images := words.image_rows(judged):
        lines += ["", "## Image by image", "", _markdown(words.IMAGES, images)]
        lines += ["", words.image_note(judged)]
    return lines


def _markdown(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"
