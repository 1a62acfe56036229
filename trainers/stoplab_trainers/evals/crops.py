"""Augmented views of a split, for protocols that train on images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from stoplab_platform.randomness import Stream, row_keys, uniforms
from stoplab_platform.specs.data import DataSpec
from stoplab_trainers.data.decode import NUM_UNIFORMS, random_crop
from stoplab_trainers.data.jpeg import Pixels
from stoplab_trainers.evals.draws import AUGMENT
from stoplab_trainers.evals.splits import Split


def crops(
    split: Split,
    plan: Sequence[NDArray[np.int64]],
    seed: int,
    epoch: int,
    scale: tuple[float, float],
) -> Iterator[UInt8[Tensor, "b 3 s s"]]:
    """Random resized crops, half of them flipped: a batch for each of the plan's rows.

    A crop follows from the seed, the epoch and the sample's number in its set, wherever in a
    batch it comes.
    """
    law = DataSpec(train="digits", image_size=split.size, crop_scale=scale, hflip=True)
    keys = row_keys(seed, Stream.EVAL, AUGMENT, epoch, rows=split.ids)

    def crop(row: int, image: Pixels) -> UInt8[Tensor, "3 s s"]:
        return random_crop(image, uniforms(keys[row : row + 1], NUM_UNIFORMS)[0], law)

    return split.shown(plan, crop)
