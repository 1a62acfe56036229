"""Two workers of one thread each against one worker of two: the same images, the same weights.

python benchmarks/workers.py [--json] [--quick]

Seconds of the median step of one worker with two threads / those of two workers (gloo) with one,
by the clock. Wants two cores that nobody else uses. Losses must agree to 1e-4.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from harness import Result, arguments, compare, tell
from teams import QUICK_ROUNDS, QUICK_STEPS, ROUNDS, STEPS, plain

TOLERANCE = 1e-4


def results(quick: bool) -> list[Result]:
    """The one case."""
    rounds, count = (QUICK_ROUNDS, QUICK_STEPS) if quick else (ROUNDS, STEPS)
    with (
        tempfile.TemporaryDirectory(prefix="stoplab-bench-") as place,
        plain(Path(place), "one", quick, workers=1, threads=2) as one,
        plain(Path(place), "two", quick, workers=2, threads=1) as two,
    ):
        found = compare(
            "workers", lambda: one.step(count), lambda: two.step(count), rounds,
            floor=0.9, clock=lambda: one.seconds + two.seconds,
        )  # fmt: skip
    apart = max(abs(a - b) for a, b in zip(one.losses, two.losses, strict=True))
    assert apart <= TOLERANCE, f"the losses are {apart} apart"
    return [found]


if __name__ == "__main__":
    tell("workers", results(arguments().quick))
