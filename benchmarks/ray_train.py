"""What Ray Train adds to a step: one worker under a TorchTrainer, and the same loop without Ray.

python benchmarks/ray_train.py [--json] [--quick]

The median step of each turn, seconds of the clock, one thread on both sides. Both train the same
run and must tell the same losses.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from harness import Result, arguments, compare, tell
from teams import QUICK_ROUNDS, QUICK_STEPS, ROUNDS, STEPS, plain, under_ray_train


def results(quick: bool) -> list[Result]:
    """The one case."""
    rounds, count = (QUICK_ROUNDS, QUICK_STEPS) if quick else (ROUNDS, STEPS)
    with (
        tempfile.TemporaryDirectory(prefix="stoplab-bench-") as place,
        plain(Path(place), "bare", quick, workers=1, threads=1) as bare,
        under_ray_train(Path(place), "under_ray", quick, threads=1) as train,
    ):
        found = compare(
            "ray_train", lambda: train.step(count), lambda: bare.step(count), rounds,
            aim=1.02, at_most=1.05, clock=lambda: train.seconds + bare.seconds,
        )  # fmt: skip
    assert train.losses == bare.losses, "they did not train the same"
    return [found]


if __name__ == "__main__":
    tell("ray_train", results(arguments().quick))
