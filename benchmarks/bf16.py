"""Whether a run in bf16 learns what it learns in fp32.

python benchmarks/bf16.py [--json] [--quick] [--data SHARDS]

The largest difference of a step's loss / that step's loss in fp32, over the first 200 steps of
StoP's ViT-B/16 with a short warm-up. Same seed, images, masks and noise; digits unless told
otherwise. fp32 is computed operation by operation, bf16 as a GPU is given it: compiled. Quartiles
are of all steps.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from harness import Result, arguments, tell
from runs import on_this_device, published_spec

from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.loop import Run, steps
from stoplab_trainers.measure import Diverged

CHANGES = {
    "optim.batch_size": 128, "optim.epochs": 40, "optim.warmup_epochs": 5.0,
    "tracking.log_every_steps": 1,
}  # fmt: skip
LOSSES, QUICK_LOSSES = 200, 4
AT_MOST, AIM = 0.01, 0.003


def results(quick: bool, data: str = "digits") -> list[Result]:
    """The one case."""
    full, half = (losses(data, precision, quick) for precision in ("fp32", "bf16"))
    apart = [abs(low - high) / high for low, high in zip(half, full, strict=True)]
    low, _, high = statistics.quantiles(apart, n=4)
    worst = max(apart)
    return [Result("bf16", worst, (low, high), None, AIM, AT_MOST, worst <= AT_MOST)]


def losses(data: str, precision: str, quick: bool) -> list[float]:
    """Of each step."""
    changes = {**CHANGES, "compute.precision": precision}
    if precision == "fp32":
        changes["compute.compile"] = "off"
    spec = published_spec("stop_vitb16", data, changes, quick=quick)
    with tempfile.TemporaryDirectory(prefix="stoplab-bench-") as folder:
        run = Run(spec, ShardSet.open(data, Path(folder)), on_this_device())
        run.last_step = QUICK_LOSSES if quick else LOSSES
        try:
            return [report.metrics["train/loss"] for report in steps(run)]
        except Diverged as error:
            raise Diverged(f"in {precision} {error}") from error


if __name__ == "__main__":
    told = arguments()
    tell("bf16", results(told.quick, told.data))
