"""How fast runs go: what this lab has measured, what follows from it, or what has to be assumed.

A finished run leaves its rate in its folder. A run of the same shape on the same hardware is
expected to go as fast; one that is near is scaled by the operations; without either a table of
assumptions is asked. Each answer says which of the three it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any, Literal

from stoplab_platform.cost import Range, flops
from stoplab_platform.errors import SpecError
from stoplab_platform.files import read_json
from stoplab_platform.paths import JobFolder, RunFolder
from stoplab_platform.specs import RunSpec, load_spec
from stoplab_platform.specs.base import canonical_digest
from stoplab_platform.specs.data import EMBEDDED_IMAGES

Confidence = Literal["measured", "scaled", "assumed"]
MOST_RUNS = 200  # of a lab, the newest first, that are looked at

CPU_FLOPS = Range(30e9, 65e9, 130e9)
"""A CPU thread's rate on a wide model, fp32. Measured on cores with AVX-512: 43 to 82e9 without
data, optimiser and neighbours, 53e9 in whole runs beside others; a matrix product alone 145e9."""
NARROW = 60
"""A model of this width reaches half of the rate: small products cost a CPU more (measured)."""
THREADS = 0.8
"""More threads of one worker bring this power of their number (assumed)."""
GPU_FLOPS = Range(30e12, 90e12, 400e12)
"""A GPU's rate, bf16. The authors of I-JEPA got 60e12 of an A100 (ViT-H, "less than 1200 GPU
hours"); half of an H100's dense 800e12 is the aim there. The spec does not say which GPU it is."""
BLOCKS_PER_S = {"cpu": Range(100, 300, 800), "gpu": Range(600, 1800, 6000)}
"""Transformer blocks that are started in a second, however small: what is around the products.
(CPU: about 360 in a whole run on digits, 912 steps of 8 blocks in 20 s; GPU: assumed.)"""
DECODED_PER_S = Range(250, 400, 900)
"""Images that one loader thread decodes in a second (measured: 409 at 224 pixels, 817 at 96)."""
ASSUMED = {
    "cpu": "no finished run of this lab is near: a CPU thread is assumed to do 30 to 130 GFLOP/s "
    "on a wide model and less on a narrow one, as measured on cores with AVX-512, and to start "
    "100 to 800 blocks/s",
    "gpu": "no finished run of this lab is near: a GPU is assumed to do 30 to 400 TFLOP/s in bf16 "
    "(half of what I-JEPA's authors got of an A100, half of an H100's peak) and to start 600 to "
    "6000 blocks/s, a loader thread to decode 250 to 900 images/s",
}
FEW, MANY = 1.3, 1.15
"""What runs of one shape differ by (ratio), told by one or two of them, or by more."""
SCALED = 1.4
"""The same for a scaled rate, and once more for each factor of e in operations or processors."""


@dataclass(frozen=True)
class Measured:
    """What one finished run tells of its like."""

    run: str
    """Job and run, for people."""
    spec: RunSpec
    samples_per_s: float
    overhead_s: float | None
    """Seconds beside the steps: evaluations, checkpoints. None where the run was interrupted."""
    images: int
    """Of an epoch, but for less than one batch."""


@dataclass(frozen=True)
class Rate:
    """Images per second of a whole run, all workers together."""

    samples_per_s: Range
    confidence: Confidence
    overhead_s: float | None
    """Seconds beside the steps, where runs of the same shape and evaluations told them."""
    sentence: str
    runs: tuple[str, ...] = ()
    """What it rests on."""


def measured(folders: Iterable[JobFolder]) -> list[Measured]:
    """What the finished runs in these folders measured; the first ones, if there are many."""
    found: list[Measured] = []
    for folder in folders:
        for run in folder.each_run():
            if len(found) == MOST_RUNS:
                return found
            if run.summary.exists() and (one := _measured(folder.root.name, run.root)):
                found.append(one)
    return found


def rate(spec: RunSpec, known: Sequence[Measured]) -> Rate:
    """How fast a run will go, by the best evidence there is."""
    same = [one for one in known if shape(one.spec) == shape(spec)]
    if same:
        return _of_the_same(spec, same)
    near = [one for one in known if _device(one.spec) == _device(spec)]
    if near:
        return _scaled(spec, min(near, key=lambda one: _distance(spec, one.spec)))
    return Rate(_assumed(spec), "assumed", None, ASSUMED[_device(spec)])


def shape(spec: RunSpec) -> str:
    """Digest of what decides a run's speed: sizes, masks, batch, and the hardware it asks for."""
    model = spec.model.sizes(), spec.model.predictor.plain(), spec.objective.plain()
    compute = spec.compute.plain()
    compute.pop("max_failures")
    compute["threads"] = spec.compute.resolved_threads
    parts = [str(model), spec.masking.plain(), spec.data.image_size, spec.optim.batch_size, compute]
    return canonical_digest(parts)


@lru_cache(maxsize=2048)
def _measured(job: str, root: Path) -> Measured | None:
    """A finished run's folder never changes. None where it was no run of this release's."""
    run = RunFolder(root)
    summary: dict[str, Any] = read_json(run.summary) or {}
    try:
        spec = load_spec(run.spec)
    except SpecError:
        return None  # an adopted run, or one of another release
    speed = _speed(run, summary)
    if not isinstance(spec, RunSpec) or speed is None:
        return None
    epochs = summary["facts"].get("until_epoch") or spec.optim.epochs  # of a population's leg
    images = summary["steps"] // epochs * spec.optim.batch_size
    beside = summary["elapsed_s"] - summary["steps"] * spec.optim.batch_size / speed
    return Measured(f"{job}/{root.name}", spec, speed, beside if beside > 0 else None, images)


def _speed(run: RunFolder, summary: Mapping[str, Any]) -> float | None:
    """A moving mean where the run left one, else the last logged steps."""
    progress = read_json(run.progress) or {}
    found = progress.get("samples_per_s") or summary.get("metrics", {}).get("train/samples_per_s")
    return float(found) if found else None


def _of_the_same(spec: RunSpec, same: Sequence[Measured]) -> Rate:
    speeds = [one.samples_per_s for one in same]
    spread = MANY if len(same) > 2 else FEW
    judged = [
        one.overhead_s
        for one in same
        if one.overhead_s is not None and _beside(one.spec) == _beside(spec)
    ]
    names = tuple(one.run for one in same)
    return Rate(
        Range(min(speeds) / spread, median(speeds), max(speeds) * spread),
        "measured",
        median(judged) if judged else None,
        f"{len(same)} finished run(s) of this shape did {median(speeds):.4g} images/s in this lab",
        names[:5],
    )


def _scaled(spec: RunSpec, one: Measured) -> Rate:
    factor = _assumed(spec).value / _assumed(one.spec).value
    spread = SCALED ** (1 + _distance(spec, one.spec))
    value = one.samples_per_s * factor
    text = (
        f"the nearest finished run did {one.samples_per_s:.4g} images/s at "
        f"{flops(one.spec).train:.3g} FLOPs an image; scaled to {flops(spec).train:.3g}"
    )
    speeds = Range(value / spread, value, value * spread)
    return Rate(speeds, "scaled", None, text, (one.run,))


def _assumed(spec: RunSpec) -> Range:
    """Images per second by the table of assumptions: of what is slowest."""
    compute = spec.compute
    passes = 1 + spec.objective.averages  # context, target
    blocks = passes * spec.model.sizes().depth + spec.model.predictor.depth
    bounds = [BLOCKS_PER_S[_device(spec)] * (spec.optim.batch_size / blocks)]
    if _device(spec) == "gpu":
        speed = GPU_FLOPS * (compute.workers * compute.gpus_per_worker)
    else:
        width = spec.model.sizes().width
        threads = compute.workers * compute.resolved_threads**THREADS
        speed = CPU_FLOPS * (threads * width / (width + NARROW))
    if spec.data.train not in EMBEDDED_IMAGES:
        bounds.append(DECODED_PER_S * (compute.workers * max(1, spec.data.loader_threads)))
    bounds.append(speed * (1 / flops(spec).train))
    return Range(
        min(one.low for one in bounds),
        min(one.value for one in bounds),
        min(one.high for one in bounds),
    )


def _distance(spec: RunSpec, other: RunSpec) -> float:
    """Factors of e between two runs, in operations and in processors."""
    operations = abs(math.log(flops(spec).train / flops(other).train))
    return operations + abs(math.log(_processors(spec) / _processors(other)))


def _processors(spec: RunSpec) -> float:
    compute = spec.compute
    each = compute.gpus_per_worker if _device(spec) == "gpu" else compute.resolved_threads
    return compute.workers * each


def _device(spec: RunSpec) -> Literal["cpu", "gpu"]:
    return "gpu" if spec.compute.gpus_per_worker > 0 else "cpu"


def _beside(spec: RunSpec) -> str:
    """What decides the time beside the steps."""
    data = spec.data.eval_data()
    judged = [None if data is None else data.plain(), [one.plain() for one in spec.evals]]
    saved = {
        name: getattr(spec.checkpoint, name) for name in ("every_epochs", "every_steps", "keep")
    }
    return canonical_digest([*judged, spec.optim.epochs, saved])
