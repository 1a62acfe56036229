"""Judge a CSV of runs made anywhere, with the statistics of stoplab's own comparisons.

    python -m stoplab_sweeps.table results.csv --block seed --arm arm --metric acc [--json]

Long form: one row for each block and arm. Exit codes are those of `stoplab_platform.exits`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stoplab_platform.errors import Problem, SpecError
from stoplab_platform.exits import Exit
from stoplab_sweeps.compare import compare
from stoplab_sweeps.report import comparison_table, facts_table
from stoplab_sweeps.wording import sentence, warnings

REFERENCE = "deterministic"
LARGEST = 1e100  # whose squares and their sums are numbers still
UNKNOWN: dict[str, Any] = {"certificate": None, "baseline": None, "context": {}, "per_image": None}
"""What a table does not tell."""

Values = dict[str, dict[str, float | None]]


def main(arguments: Sequence[str] | None = None) -> Exit:
    """Read, judge, print: the result as JSON, or a table and a sentence."""
    options = _parser().parse_args(arguments)
    try:
        judged = judge_file(
            options.file, block=options.block, arm=options.arm, metric=options.metric,
            reference=options.reference, min_effect=options.min_effect, alpha=options.alpha,
        )  # fmt: skip
    except SpecError as error:
        if options.json:
            _print_json({"errors": [_document(problem) for problem in error.problems]})
        for problem in error.problems:
            print(f"{problem.dotted}: {problem.message}", file=sys.stderr)
        return Exit.BAD_INPUT
    if options.json:
        _print_json(judged)
    else:
        print(comparison_table(judged))
        print(f"\n{facts_table(judged)}")
        print("".join(f"\nnote: {warning}." for warning in judged["warnings"]))
    return Exit.OK


def judge_file(
    path: Path,
    *,
    block: str,
    arm: str,
    metric: str,
    reference: str | None = None,
    min_effect: float = 0.005,
    alpha: float = 0.05,
) -> dict[str, Any]:
    """A comparison's result from the named columns; SpecError with all that is wrong."""
    columns = {"block": block, "arm": arm, "metric": metric}
    problems = _options(min_effect, alpha)
    values, found = _read(path, columns)
    arms = list(dict.fromkeys(name for row in values.values() for name in row))
    problems += found
    if arms:
        problems += _wrong_arms(arms, reference)
    if problems:
        raise SpecError(problems)
    first = reference or REFERENCE
    order = [first, *(name for name in arms if name != first)]
    judged = compare(_numbered(values), order, metric=metric, min_effect=min_effect, alpha=alpha)
    for one in judged["blocks"]:
        one["run_ids"] = dict.fromkeys(order)
    judged |= UNKNOWN
    judged["warnings"] = warnings(judged)
    judged["sentence"] = sentence(judged)
    return judged


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m stoplab_sweeps.table", description=__doc__)
    parser.add_argument("file", type=Path)
    for name in ("block", "arm", "metric"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--reference")
    parser.add_argument("--min-effect", type=float, default=0.005)
    parser.add_argument("--alpha", type=float, default=0.05)
    parser.add_argument("--json", action="store_true")
    return parser


def _options(min_effect: float, alpha: float) -> list[Problem]:
    found = []
    if not (math.isfinite(min_effect) and min_effect >= 0):
        found.append(Problem(("min_effect",), f"{min_effect:g}: give 0 or more"))
    if not 0 < alpha < 0.5:
        found.append(Problem(("alpha",), f"{alpha:g}: give a rate between 0 and 0.5"))
    return found


def _read(path: Path, columns: Mapping[str, str]) -> tuple[Values, list[Problem]]:
    """Block to arm to value, in the order of the file, and what is wrong with it."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            if problems := _wrong_columns(list(reader.fieldnames), columns):
                return {}, problems
            return _gather(((reader.line_num, row) for row in reader), columns)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return {}, [Problem(("file",), f"{path}: {error}")]


def _wrong_columns(header: Sequence[str], columns: Mapping[str, str]) -> list[Problem]:
    found = []
    for option, name in columns.items():
        before = [f"--{other}" for other in columns if columns[other] == name]
        if before[0] != f"--{option}":
            found.append(Problem((option,), f"column {name!r} is that of {before[0]} already"))
        elif name not in header:
            found.append(Problem((option,), f"no column {name!r}; the file has {header}"))
        elif header.count(name) > 1:
            found.append(Problem((option,), f"{header.count(name)} columns are called {name!r}"))
    return found


def _gather(
    rows: Iterable[tuple[int, Mapping[str | None, Any]]], columns: Mapping[str, str]
) -> tuple[Values, list[Problem]]:
    values: Values = {}
    problems: list[Problem] = []
    seen: dict[tuple[str, str], int] = {}
    for line, row in rows:
        if None in row:  # where the reader puts what has no column
            problems.append(Problem(("file",), f"row {line}: more fields than the header names"))
            continue
        block, arm, text = ((row[columns[name]] or "").strip() for name in columns)
        if not block or not arm:
            problems.append(Problem(("file",), f"row {line}: the block or the arm is empty"))
            continue
        if (block, arm) in seen:
            text = f"row {line}: block {block!r}, arm {arm!r} stands in row {seen[block, arm]} too"
            problems.append(Problem(("file",), text))
            continue
        seen[block, arm] = line
        try:
            values.setdefault(block, {})[arm] = _value(text)
        except ValueError as error:
            where = f"row {line}, column {columns['metric']!r}"
            problems.append(Problem(("metric",), f"{where}: {text!r} {error}"))
    if not seen and not problems:
        problems.append(Problem(("file",), "holds no rows below its header"))
    return values, problems


def _value(text: str) -> float | None:
    """An empty cell and NaN are missing values; ValueError says what is wrong with another."""
    try:
        value = math.nan if "_" in text else float(text or "nan")
    except ValueError:
        value = math.inf
    if math.isinf(value) or "_" in text:  # Python alone reads 1_0 as ten
        raise ValueError("is no finite number")
    if abs(value) > LARGEST:
        raise ValueError(f"is too large; give numbers to {LARGEST:g}")
    return None if math.isnan(value) else value


def _numbered(values: Values) -> Mapping[Any, dict[str, float | None]]:
    """Blocks that are whole numbers, all of them, as such: seeds, as in every comparison."""
    numbers = [int(block) for block in values if re.fullmatch(r"-?[0-9]+", block)]
    if len(set(numbers)) < len(values):
        return values
    return dict(zip(numbers, values.values(), strict=True))


def _wrong_arms(arms: Sequence[str], reference: str | None) -> list[Problem]:
    if len(arms) < 2:
        return [Problem(("arm",), f"needs two arms or more; the file has only {list(arms)}")]
    if reference is not None and reference not in arms:
        return [Problem(("reference",), f"{reference!r} is no arm; the file has {list(arms)}")]
    if reference is None and REFERENCE not in arms:
        return [Problem(("reference",), f"no arm is called {REFERENCE!r}: name one of {list(arms)}"
                        " with --reference")]  # fmt: skip
    return []


def _document(problem: Problem) -> dict[str, str]:
    return {"path": problem.dotted, "pointer": problem.pointer(), "message": problem.message}


def _print_json(value: Mapping[str, Any]) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


if __name__ == "__main__":
    sys.exit(main())
