"""Batches of training crops, decoded ahead by threads that change no result."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from stoplab_platform.errors import DataError
from stoplab_platform.randomness import Stream, row_keys, uniforms
from stoplab_platform.specs.data import DataSpec
from stoplab_trainers.data.bad import BadSamples
from stoplab_trainers.data.decode import (
    NUM_UNIFORMS,
    BadImage,
    crop_of,
    decode,
    named,
    random_crop,
    size_of,
)
from stoplab_trainers.data.jpeg import Pixels
from stoplab_trainers.data.plan import Plan, share
from stoplab_trainers.data.prefetch import Prefetch
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
    bad: BadSamples | None = None,
) -> Iterator[Batch]:
    """The batches of the steps from ``start_step`` to before ``stop_step``.

    A crop depends on the seed, the epoch and the sample, on nothing else. What cannot be decoded is
    noted in ``bad`` and replaced; DataError names it where there are too many. Closing the
    generator ends its threads; without any (``data.loader_threads`` 0) a batch is made when it is
    asked for. ``pin_memory`` lets a copy to a GPU run beside it.
    """
    images = Images(shards, bad or BadSamples(shards, data.max_bad_samples, seed))
    prefetch = Prefetch(shards, plan, rank, world, ahead=AHEAD, stop_step=stop_step)
    threads = data.loader_threads
    making: deque[_Making] = deque()
    pool = _pool(threads) if threads else None
    try:
        for step in range(start_step, stop_step):
            if len(making) == (AHEAD if pool else 1):
                yield making.popleft().result()
            prefetch.at(step)
            ids = plan.ids(step)
            ids = ids[share(len(ids), rank, world)]
            draws = uniforms(
                row_keys(seed, Stream.AUGMENT, plan.epoch(step), rows=ids), NUM_UNIFORMS
            )
            side = data.image_size
            room = torch.empty((len(ids), 3, side, side), dtype=torch.uint8, pin_memory=pin_memory)
            batch = Batch(step, ids, room)
            making.append(_Making(pool, images, data, draws, batch, plan.epoch(step)))
        while making:
            yield making.popleft().result()
    finally:
        prefetch.close()
        if pool:
            pool.shutdown(cancel_futures=True)


def normalise(
    images: UInt8[Tensor, "b 3 h w"], room: Float[Tensor, "b 3 h w"] | None = None
) -> Float[Tensor, "b 3 h w"]:
    """Pixels to floats with ImageNet's mean and deviation, where the images lie.

    They are written to ``room`` where one is given: fresh memory costs more than the arithmetic.
    """
    floats = images.float() if room is None else room.copy_(images)
    # A channel at a time: with one factor for all of a plane, torch has vectors for it.
    for plane, scale, shift in zip(floats.unbind(1), *_affine(images.device), strict=True):
        torch.add(shift, plane, alpha=scale, out=plane)
    return floats


class Images:
    """Decoded samples; they stay in memory when the whole set fits into KEEP_BYTES."""

    def __init__(self, shards: ShardSet, bad: BadSamples) -> None:
        self._shards, self._bad = shards, bad
        self._kept: dict[int, Pixels] = {}
        self._room = KEEP_BYTES

    def usable(
        self, sample_id: int, epoch: int, u: NDArray[np.float64], data: DataSpec
    ) -> tuple[int, UInt8[Tensor, "3 side side"]]:
        """The crop of a sample, or of the one that stands for it in this epoch; and which."""
        for candidate in self._bad.candidates(sample_id, epoch):
            try:
                return candidate, self.crop(candidate, u, data)
            except BadImage as error:
                self._bad.note(candidate, error)
        name = self._shards.name(sample_id)
        raise DataError(f"sample {name}: hardly any of its shard can be read")

    def crop(
        self, sample_id: int, u: NDArray[np.float64], data: DataSpec
    ) -> UInt8[Tensor, "3 side side"]:
        """A sample's training crop, drawn by ``u``. BadImage names the sample."""
        pixels = self._kept.get(sample_id)
        if pixels is None:
            with named(self._shards, sample_id):
                encoded = self._shards.read(sample_id)
                # Of a scaled image, how many pixels there are depends on the crop: none are kept.
                if data.decode == "scaled" or not self._is_worth_keeping(encoded):
                    return crop_of(encoded, u, data)
                pixels = self._kept[sample_id] = decode(encoded)
            self._room -= pixels.nbytes
        return random_crop(pixels, u, data)

    def _is_worth_keeping(self, encoded: bytes) -> bool:
        height, width = size_of(encoded)
        num_bytes = 3 * height * width
        # A set whose images are like this one would not fit: then none is worth keeping.
        return num_bytes * len(self._shards) <= KEEP_BYTES and num_bytes <= self._room


def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads in which torch starts none of its own; what they decode, they decode alone."""
    return ThreadPoolExecutor(
        threads, "stoplab-loader", initializer=torch.set_num_threads, initargs=(1,)
    )


class _Making:
    """A batch that the pool's threads fill, each its own rows; without a pool, whoever asks."""

    def __init__(
        self,
        pool: ThreadPoolExecutor | None,
        images: Images,
        data: DataSpec,
        draws: NDArray[np.float64],
        batch: Batch,
        epoch: int,
    ) -> None:
        self._epoch = epoch
        self._images, self._data, self._draws, self._batch = images, data, draws, batch
        self._rows = np.arange(len(batch.ids))
        num_parts = min(max(data.loader_threads, len(self._rows) // PART), len(self._rows))
        parts = np.array_split(self._rows, num_parts) if pool else []
        self._parts = [pool.submit(self._fill, part) for part in parts] if pool else None

    def result(self) -> Batch:
        if self._parts is None:  # not a call kept for later: it would hold the batch in a circle
            self._fill(self._rows)
        else:
            for part in self._parts:
                part.result()
        return self._batch

    def _fill(self, rows: NDArray[np.int64]) -> None:
        out = self._batch.images.numpy()
        for row in rows:
            self._batch.ids[row], crop = self._images.usable(
                int(self._batch.ids[row]), self._epoch, self._draws[row], self._data
            )
            out[row] = crop.numpy()


@cache
def _affine(device: torch.device) -> tuple[list[float], Sequence[Tensor]]:
    """What a pixel of each channel is multiplied by, and what is added."""
    std = torch.tensor(STD)
    return (1 / (255 * std)).tolist(), (-torch.tensor(MEAN) / std).to(device).unbind()
