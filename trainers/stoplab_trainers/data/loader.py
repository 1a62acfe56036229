"""Batches of training crops, decoded ahead by threads that change no result."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from stoplab_platform.randomness import Stream, row_keys, uniforms
from stoplab_platform.specs.data import DataSpec
from stoplab_trainers.data.decode import NUM_UNIFORMS, Pixels, decoded, random_crop
from stoplab_trainers.data.plan import Plan, share
from stoplab_trainers.data.shards import ShardSet

AHEAD = 4  # batches in the making
PART = 32  # images of a batch that a thread fills without asking again
KEEP_BYTES = 256 << 20  # of decoded pixels, when the whole set fits
MEAN = (0.485, 0.456, 0.406)  # ImageNet's, as every published config
STD = (0.229, 0.224, 0.225)


class Batch(NamedTuple):
    """One rank's part of a step's images; ``ids`` are theirs, ``step`` counts from 0."""

    step: int
    ids: NDArray[np.int64]
    images: UInt8[Tensor, "b 3 side side"]


def batches(
    shards: ShardSet,
    plan: Plan,
    data: DataSpec,
    *,
    seed: int,
    rank: int,
    world: int,
    start_step: int,
    stop_step: int,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """The batches of the steps from ``start_step`` to before ``stop_step``.

    A crop depends on the seed, the epoch and the sample, on nothing else. DataError names the
    sample that cannot be read. Closing the generator ends its threads. ``pin_memory`` lets a
    copy to a GPU run beside it.
    """
    images = Images(shards)
    making: deque[_Making] = deque()
    pool = ThreadPoolExecutor(data.loader_threads, thread_name_prefix="stoplab-loader")
    try:
        for step in range(start_step, stop_step):
            if len(making) == AHEAD:
                yield making.popleft().result()
            ids = plan.ids(step)
            ids = ids[share(len(ids), rank, world)]
            draws = uniforms(
                row_keys(seed, Stream.AUGMENT, plan.epoch(step), rows=ids), NUM_UNIFORMS
            )
            side = data.image_size
            room = torch.empty((len(ids), 3, side, side), dtype=torch.uint8, pin_memory=pin_memory)
            making.append(_Making(pool, images, data, draws, Batch(step, ids, room)))
        while making:
            yield making.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def normalise(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Pixels to floats with ImageNet's mean and deviation, where the images lie."""
    scale, shift = _affine(images.device)
    return torch.addcmul(shift, images.float(), scale)


class Images:
    """Decoded samples; they stay in memory when the whole set fits into KEEP_BYTES."""

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self._kept: dict[int, Pixels] = {}
        self._room = KEEP_BYTES

    def __getitem__(self, sample_id: int) -> Pixels:
        pixels = self._kept.get(sample_id)
        return self._decoded(sample_id) if pixels is None else pixels

    def _decoded(self, sample_id: int) -> Pixels:
        pixels = decoded(self._shards, sample_id)
        # A set whose images are like this one would not fit: then none is worth keeping.
        if pixels.nbytes * len(self._shards) <= KEEP_BYTES and pixels.nbytes <= self._room:
            self._room -= pixels.nbytes
            self._kept[sample_id] = pixels
        return pixels


class _Making:
    """A batch that the pool's threads fill, each its own rows."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        images: Images,
        data: DataSpec,
        draws: NDArray[np.float64],
        batch: Batch,
    ) -> None:
        self._images, self._data, self._draws, self._batch = images, data, draws, batch
        rows = np.arange(len(batch.ids))
        num_parts = max(data.loader_threads, len(rows) // PART)
        parts = np.array_split(rows, min(num_parts, len(rows)))
        self._parts: list[Future[None]] = [pool.submit(self._fill, part) for part in parts]

    def result(self) -> Batch:
        for part in self._parts:
            part.result()
        return self._batch

    def _fill(self, rows: NDArray[np.int64]) -> None:
        # NumPy copies: torch would start threads of its own in each of ours.
        out = self._batch.images.numpy()
        for row in rows:
            image = self._images[int(self._batch.ids[row])]
            out[row] = random_crop(image, self._draws[row], self._data).numpy()


@cache
def _affine(device: torch.device) -> tuple[Tensor, Tensor]:
    std = torch.tensor(STD, device=device)
    scale = 1 / (255 * std)
    shift = -torch.tensor(MEAN, device=device) / std
    return scale[:, None, None], shift[:, None, None]
