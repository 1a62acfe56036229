"""Ways from photos on disk to batches, for the benchmarks of the loader.

A way is a function without arguments that goes once through all photos, in batches of BATCH, and
decodes in one thread. As they are used, the published loader decodes in a worker process and hands
batches over in shared memory, ours decodes in a thread; `cpu_seconds` counts both. Without workers,
both decode where the batches are asked for.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import resized_crop

from stoplab_platform.specs.data import DataSpec
from stoplab_trainers.data import loader
from stoplab_trainers.data.bad import BadSamples
from stoplab_trainers.data.decode import NUM_UNIFORMS, crop_box
from stoplab_trainers.data.plan import Plan
from stoplab_trainers.data.shards import ShardSet

BATCH = 64
CROP_SCALE = (0.3, 1.0)
LEAST_DB = 50  # crops of the same box that are decoded in full agree to so much
Way = Callable[[], object]
Spread = dict[str, float]
LIBC = ctypes.CDLL(None)


def cpu_seconds() -> float:
    """Of the processor, that this process and its children have taken."""
    clock, children = ctypes.c_int(), 0.0
    for child in multiprocessing.active_children():
        # POSIX's, which Python has of threads alone; times(2) counts hundredths of a second.
        if child.pid and not LIBC.clock_getcpuclockid(child.pid, ctypes.byref(clock)):
            children += time.clock_gettime(clock.value)
    return time.process_time() + children


def official(folder: Path, side: int, workers: int = 0) -> Way:
    """The published input pipeline without flip, grey and blur: I-JEPA's.

    torchvision's ImageFolder (PIL decodes), RandomResizedCrop, ToTensor, Normalize; torch's
    DataLoader, whose worker stays from one pass to the next.
    """
    steps = [
        transforms.RandomResizedCrop(side, scale=CROP_SCALE),
        transforms.ToTensor(),
        transforms.Normalize(loader.MEAN, loader.STD),
    ]
    files = ImageFolder(folder / "files", transforms.Compose(steps))
    options = {"persistent_workers": True, "multiprocessing_context": "spawn"} if workers else {}
    feed = DataLoader(files, BATCH, shuffle=True, num_workers=workers, **options)
    return lambda: [len(images) for images, _ in feed]


def ours(
    folder: Path, side: int, decode: str = "full", normalise: bool = True, threads: int = 0
) -> Way:
    """Our loader: shards, simplejpeg, torch's antialiased resize of uint8, `normalise` a batch.

    As in a set too large to be kept in memory: every image is decoded anew.
    """
    shards = opened(folder)
    data = spec(side, decode, loader_threads=threads)
    plan = Plan(shards.counts, min(BATCH, len(shards)), seed=0)
    loader.KEEP_BYTES = 0

    floats = None

    def go() -> None:
        nonlocal floats
        steps = {"start_step": 0, "stop_step": plan.steps_per_epoch}
        for batch in loader.batches(shards, plan, data, seed=0, rank=0, world=1, **steps):
            if normalise:  # as the training loop does
                floats = loader.normalise(batch.images, floats)

    return go


def pure_decode(folder: Path) -> Way:
    """simplejpeg on the photos' bytes in memory, and nothing else."""
    encoded = everything(opened(folder))
    return lambda: [simplejpeg.decode_jpeg(data, "RGB").nbytes for data in encoded]


def closeness(folder: Path, side: int, decode: str, number: int) -> Spread:
    """PSNR (dB) of our crops of ``number`` photos to PIL's and torchvision's of the same boxes."""
    shards = opened(folder)
    crops = loader.Images(shards, BadSamples(shards, most=0, seed=0))
    draws = np.random.default_rng(0).random((number, NUM_UNIFORMS))
    found = []
    for sample_id, u in enumerate(draws):
        ours = crops.crop(sample_id, u, spec(side, decode))
        image = Image.open(next(folder.glob(f"files/*/{shards.keys[sample_id]}.jpg")))
        box = crop_box(image.height, image.width, u, CROP_SCALE)
        theirs = resized_crop(image.convert("RGB"), *box, [side, side])
        found.append(_psnr(ours.permute(1, 2, 0).numpy(), np.asarray(theirs)))
    return {"median": round(float(np.median(found)), 1), "min": round(min(found), 1)}


def opened(folder: Path) -> ShardSet:
    """The photos' shards, whose index is made once and kept."""
    return ShardSet.open(str(folder / "shards" / "*.tar"), folder / "cache")


def everything(shards: ShardSet) -> Sequence[bytes]:
    """All photos' bytes."""
    return [shards.read(sample_id) for sample_id in range(len(shards))]


def spec(side: int, decode: str, **more: object) -> DataSpec:
    """Crops of ``side`` pixels as the published configs draw them."""
    plain = {"train": "photos", "image_size": side, "crop_scale": CROP_SCALE, "decode": decode}
    return DataSpec.model_validate({**plain, **more})


def _psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else np.inf
