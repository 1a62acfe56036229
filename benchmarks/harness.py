"""Ratios instead of seconds: two things timed by turns in one run, so that machines compare."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Result:
    """Time of ``a`` / time of ``b``: the median over the rounds, and its quartiles."""

    name: str
    ratio: float
    quartiles: tuple[float, float]
    floor: float | None
    """The least it may be."""
    aim: float | None
    """What it should be."""
    at_most: float | None
    """The most it may be."""
    passed: bool


def compare(
    name: str,
    a: Callable[[], Any],
    b: Callable[[], Any],
    rounds: int,
    floor: float | None = None,
    aim: float | None = None,
    at_most: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    factor: float = 1.0,
) -> Result:
    """Time both once a round, in turns (A B, B A, …), after one round that does not count.

    ``clock`` tells seconds: those of the processor (`time.process_time`) for work in this process,
    which a busy machine disturbs less. ``factor`` multiplies the ratio, where the amounts differ.
    """
    ratios = []
    for number in range(rounds + 1):
        first, second = (a, b) if number % 2 else (b, a)
        times = {id(first): _seconds(first, clock)}
        times[id(second)] = _seconds(second, clock)
        ratios.append(factor * times[id(a)] / times[id(b)])
    low, ratio, high = statistics.quantiles(ratios[1:], n=4)
    passed = (floor is None or ratio >= floor) and (at_most is None or ratio <= at_most)
    return Result(name, ratio, (low, high), floor, aim, at_most, passed)


def arguments() -> argparse.Namespace:
    """What a benchmark was asked for: `json`, and `quick`, `data`, `profile` if it knows them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true", help="one document in place of lines")
    parser.add_argument("--quick", action="store_true", help="few rounds: does it run at all?")
    parser.add_argument("--data", default="digits", help="shards of real images")
    parser.add_argument("--profile", type=Path, help="a file for what takes the time")
    return parser.parse_args()


def tell(name: str, results: Sequence[Result], **also: Any) -> None:
    """Print all results, end with 1 if one failed.

    `--json` prints the one nearest to its bound, or furthest beyond it, and all as its `cases`;
    or the one of the benchmark's own ``name``, if there is one. ``also`` is printed beside it.
    """
    if arguments().json:
        named = [result for result in results if result.name == name]
        worst = max(results, key=_badness)
        told = asdict(named[0] if named else worst) | {"worst": worst.name, **also}
        told["passed"] = all(result.passed for result in results)
        print(json.dumps({**told, "name": name, "cases": [asdict(result) for result in results]}))
    else:
        for result in results:
            low, high = result.quartiles
            verdict = "passed" if result.passed else "FAILED"
            if result.floor is None and result.at_most is None:
                verdict = ""
            print(f"{result.name:40} {result.ratio:6.2f} [{low:.2f}, {high:.2f}] {verdict}")
    sys.exit(not all(result.passed for result in results))


def _seconds(work: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    work()
    return clock() - start


def _badness(result: Result) -> float:
    below = result.floor / result.ratio if result.floor is not None else 0.0
    above = result.ratio / result.at_most if result.at_most is not None else 0.0
    return max(below, above)
