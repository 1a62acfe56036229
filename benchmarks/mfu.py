"""How much of what a GPU can multiply the published training steps multiply.

python benchmarks/mfu.py [--json] [--quick] [--profile FILE]

`vit_b16`, `vit_l16`, `vit_h14`: operations of the published step a second / those of a large
product of normal numbers in the run's precision, both in this run. The specs are the published
ones (trainers/configs/published) on one worker with 128 images, whose pixels lie in pinned memory;
masks, noise, copies, optimiser and moving average are part of the step. The same 20 steps
are taken again and again, and are timed when all have a CUDA graph. `vit_b16_256` has 256 images:
the host has as much to do for twice as many.

`--profile` writes what takes the time in 20 steps of ViT-B/16, by kernel of the GPU and by call of
the host. `--quick` has a tiny encoder; without a GPU the processor takes its place.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from harness import Result, arguments, compare, tell
from runs import on_this_device, published_spec

from stoplab_platform.cost import step_flops
from stoplab_trainers.data.loader import Batch
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.graphs import PLAIN_CALLS
from stoplab_trainers.hardware import SIDE, precision, wait_for
from stoplab_trainers.loop import Run
from stoplab_trainers.masking import draw_masks
from stoplab_trainers.measure import DTYPES
from stoplab_trainers.step import train_step

CASES = {
    "vit_b16": ("stop_vitb16", 128, 0.35, 0.5),
    "vit_b16_256": ("stop_vitb16", 256, 0.35, 0.5),
    "vit_l16": ("stop_vitl16", 128, 0.40, 0.52),
    "vit_h14": ("ijepa_vith14", 128, 0.42, 0.55),
}
FIRST = 1000  # step of the first batch: the first hundred are recorded for pairing, no later one
STEPS, PRODUCTS, ROUNDS = 20, 50, 6
QUICK_STEPS, QUICK_PRODUCTS, QUICK_ROUNDS = 1, 1, 2


class Steps:
    """A published run, and a few of its steps that it takes again and again."""

    def __init__(self, config: str, batch_size: int, folder: Path, quick: bool) -> None:
        changes = {"optim.batch_size": batch_size}
        spec = published_spec(config, "digits", changes, quick=quick)
        self.run = Run(spec, ShardSet.open("digits", folder), on_this_device())
        self.numbers = range(FIRST, FIRST + (QUICK_STEPS if quick else STEPS))
        count, side = spec.optim.batch_size, spec.data.image_size
        pixels = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
        if self.run.world.device.type == "cuda":
            pixels = pixels.pin_memory()
        self._batch = Batch(0, np.arange(count, dtype=np.int64), pixels)

    def __call__(self) -> None:
        """All of them; returns when the GPU is done."""
        for number in self.numbers:
            self.run.step = number + 1
            train_step(self.run, self._batch._replace(step=number))
        wait_for(self.run.world.device)

    def flops(self) -> float:
        """Their operations, by the masks that they have."""
        spec, found = self.run.spec, 0.0
        for number in self.numbers:
            context, targets = draw_masks(spec, number, self.run.rows)
            found += len(context) * step_flops(spec, context.shape[1], targets.shape[2])
        return found


def mfu(name: str, folder: Path, quick: bool, profile: Path | None = None) -> Result:
    """One model's."""
    config, batch_size, floor, aim = CASES[name]
    steps = Steps(config, batch_size, folder, quick)
    for _ in range(1 if quick else PLAIN_CALLS + 1):  # after which all sizes have a graph
        steps()
    device, count = steps.run.world.device, QUICK_PRODUCTS if quick else PRODUCTS
    side, dtype = SIDE[device.type], DTYPES[precision(steps.run.spec, device)]
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

    def products() -> None:
        for _ in range(count):
            torch.mm(one, other)
        wait_for(device)

    rounds, factor = QUICK_ROUNDS if quick else ROUNDS, steps.flops() / (count * 2 * side**3)
    found = compare(name, products, steps, rounds, floor, aim, factor=factor)
    if profile:
        profile.write_text(kernels(steps))
    return found


def kernels(steps: Steps) -> str:
    """Where the GPU's time and the host's goes."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        steps()
    found = profiler.key_averages()
    tables = [
        found.table(sort_by=f"self_{of}_time_total", row_limit=40, max_name_column_width=70)
        for of in ("device", "cpu")
    ]
    return f"{len(steps.numbers)} steps, torch {torch.__version__}\n" + "\n".join(tables) + "\n"


def results(quick: bool, profile: Path | None = None) -> list[Result]:
    """All models; the profile is the first one's."""
    found = []
    with tempfile.TemporaryDirectory(prefix="stoplab-bench-") as folder:
        for name in CASES:
            found.append(mfu(name, Path(folder), quick, profile))
            profile = None
    return found


if __name__ == "__main__":
    told = arguments()
    tell("mfu", results(told.quick, told.profile))
