"""A training step of ours against a plain one of the published recipe, and against the machine.

python benchmarks/step.py [--json] [--quick]

- `step`: seconds of `plain_step` (its docstring lists what it is made of) / seconds of ours. Both
  begin with the same weights and see the same pixels, masks and rates; losses must agree to 1e-6.
  Ours normalises pixels and draws masks in the step, the plain one is given both.
- `utilisation`: operations of the published step a second / those of a large fp32 matrix product
  (1024 a side, by the library that is faster here), both on this machine in this run.

ViT-Ti/16 at 224 px, predictor 96 wide and 6 deep, 16 images, one thread, seconds of the processor.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from harness import Result, arguments, compare, tell
from plain_step import PlainStep
from runs import run_spec
from torch import Tensor

from stoplab_platform.cost import step_flops
from stoplab_platform.specs import RunSpec
from stoplab_trainers.data.loader import Batch, normalise
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.loop import Run
from stoplab_trainers.masking import TensorMasks, draw_masks
from stoplab_trainers.model.linear import linear
from stoplab_trainers.step import train_step

RUN = ("vit_tiny_patch16_224", {"width": 96, "depth": 6}, 16)
QUICK = {
    "model.depth": 2, "model.predictor.depth": 2, "data.image_size": 96, "model.patch_size": 8,
    "optim.batch_size": 8,
}  # fmt: skip
ROUNDS, QUICK_ROUNDS = 12, 2
FIRST = 1000  # step of the first batch: the first hundred are recorded for pairing, no later one
SIDE, PRODUCTS = 1024, 10
TOLERANCE = 1e-6


class Sides:
    """Both, each with a count of its own of the batches that it has seen."""

    def __init__(self, spec: RunSpec, shards: ShardSet) -> None:
        self.run = Run(spec, shards)
        self._plain = PlainStep(spec, self.run.model.state_dict())
        self.losses: dict[str, list[float]] = {"ours": [], "plain": []}
        self._batches: dict[int, Batch] = {}
        self._given: dict[int, tuple[Tensor, TensorMasks]] = {}

    def ours(self) -> None:
        """One step of ours."""
        batch = self.batch(len(self.losses["ours"]))
        self.run.step = batch.step + 1
        self.losses["ours"].append(float(train_step(self.run, batch).loss))

    def plain(self) -> None:
        """One step of the plain recipe."""
        number = len(self.losses["plain"])
        images, masks = self.given(number)
        rates, step = self.run.schedules, self.batch(number).step + 1
        told = rates.lr(step), rates.weight_decay(step), rates.momentum(step)
        self.losses["plain"].append(self._plain(images, masks, None, told))

    def given(self, number: int) -> tuple[Tensor, TensorMasks]:
        """What the plain step is given: a batch's normalised pixels, and its masks."""
        if number not in self._given:
            batch = self.batch(number)
            masks = draw_masks(self.run.spec, batch.step, self.run.rows)
            self._given[number] = normalise(batch.images), masks
        return self._given[number]

    def batch(self, number: int) -> Batch:
        """The pixels of a step, the same for both."""
        if number not in self._batches:
            size, count = self.run.spec.data.image_size, self.run.spec.optim.batch_size
            drawn = torch.Generator().manual_seed(number)
            pixels = torch.randint(0, 256, (count, 3, size, size), generator=drawn)
            ids = np.arange(count, dtype=np.int64)
            self._batches[number] = Batch(FIRST + number, ids, pixels.to(torch.uint8))
        return self._batches[number]


def results(quick: bool) -> list[Result]:
    """Both cases."""
    torch.set_num_threads(1)
    spec = run_spec(*RUN, QUICK if quick else {})
    rounds = QUICK_ROUNDS if quick else ROUNDS
    with tempfile.TemporaryDirectory(prefix="stoplab-bench-") as folder:
        sides = Sides(spec, ShardSet.open("digits", Path(folder)))
    for number in range(rounds + 1):
        sides.given(number)  # nobody's time
    recipe = compare(
        "step", sides.plain, sides.ours, rounds, floor=1.15, aim=1.3, clock=time.process_time
    )
    apart = max(abs(a - b) for a, b in zip(*sides.losses.values(), strict=True))
    assert apart <= TOLERANCE, f"the losses are {apart} apart"
    return [recipe, utilisation(sides.run, sides.batch(0), rounds)]


def utilisation(run: Run, batch: Batch, rounds: int) -> Result:
    """Ours against matrix products, on one batch again and again."""
    context, targets = draw_masks(run.spec, batch.step, run.rows)
    flops = len(batch.images) * step_flops(run.spec, context.shape[1], targets.shape[2])
    one, other = torch.rand(SIDE, SIDE), torch.rand(SIDE, SIDE)

    def step() -> None:
        run.step = batch.step + 1
        train_step(run, batch)

    def products() -> None:
        for _ in range(PRODUCTS):
            linear(one, other, None)

    factor = flops / (PRODUCTS * 2 * SIDE**3)
    return compare(
        "utilisation", products, step, rounds, 0.5, 0.6, clock=time.process_time, factor=factor
    )


if __name__ == "__main__":
    tell("step", results(arguments().quick))
