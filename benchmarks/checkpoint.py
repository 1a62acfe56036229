"""How long a checkpoint holds up the training: written beside it, and in its place.

python benchmarks/checkpoint.py [--json] [--quick]

- `checkpoint`: seconds that `Saving.save` blocks the thread that trains / those that a bare
  `torch.save` of the same state to the same disk does (no sync, no checksum);
- `of_whole`: the same / those of `checkpoint.save`, which waits for all that a checkpoint needs.

A run of ViT-S/16 after one step: model, moving average and moments, 380 MB. Seconds of the clock,
for what is waited for is the disk. A write that has begun ends before the next turn, uncounted.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import Result, arguments, compare, tell
from runs import run_spec

from stoplab_platform.paths import RunFolder
from stoplab_trainers import checkpoint
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.hooks import Saving
from stoplab_trainers.loop import Run, steps

RUN = ("vit_small_patch16_224", {"width": 192, "depth": 6}, 2)
QUICK = {
    "model.depth": 1, "model.predictor.depth": 1, "data.image_size": 96, "masking.min_keep": 4,
}  # fmt: skip
ROUNDS, QUICK_ROUNDS = 8, 3
IDENTITY = {"run": "bench"}


class Sides:
    """The ways to save one run; `clock` tells the seconds that they have blocked so far."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self._file = run, folder / "state.pt"
        self.beside, self.in_place = RunFolder(folder / "beside"), folder / "in_place"
        self._saving = Saving(self.beside, IDENTITY)
        self._blocked = 0.0

    def clock(self) -> float:
        """Seconds."""
        return self._blocked

    def asynchronous(self) -> None:
        """As a run does it."""
        self.run.step += 1
        self._counted(lambda: self._saving.save(self.run))
        self._saving.finish(self.run)

    def bare(self) -> None:
        """torch's own, over the file before."""
        self._counted(lambda: torch.save(self.run.state(), self._file))

    def whole(self) -> None:
        """A checkpoint, with all that belongs to it."""
        self.run.step += 1
        told: dict[str, Any] = {"step": self.run.step, "identity": IDENTITY, "keep": 1}
        self._counted(lambda: checkpoint.save(self.in_place, tensors=self.run.state(), **told))

    def check(self) -> None:
        """AssertionError unless both ways have written the same state."""
        ends = [checkpoint.latest(folder) for folder in (self.beside.checkpoints, self.in_place)]
        sums = [checkpoint.manifest(end)["sha256"] for end in ends if end]
        assert len(sums) == 2, "a checkpoint is missing"
        assert sums[0] == sums[1], "the checkpoints differ"

    def _counted(self, work: Callable[[], object]) -> None:
        began = time.perf_counter()
        work()
        self._blocked += time.perf_counter() - began


def results(quick: bool) -> list[Result]:
    """Both cases."""
    torch.set_num_threads(1)
    spec = run_spec(*RUN, {"checkpoint.keep": 1, **(QUICK if quick else {})})
    rounds = QUICK_ROUNDS if quick else ROUNDS
    with tempfile.TemporaryDirectory(prefix="stoplab-bench-") as place:
        run = Run(spec, ShardSet.open("digits", Path(place)))
        next(steps(run))  # the moments are there from then on
        sides = Sides(run, Path(place))
        found = [
            compare(
                name, sides.asynchronous, other, rounds,
                aim=0.2, at_most=0.35, clock=sides.clock,
            )
            for name, other in (("checkpoint", sides.bare), ("of_whole", sides.whole))
        ]  # fmt: skip
        sides.check()
    return found


if __name__ == "__main__":
    tell("checkpoint", results(arguments().quick))
