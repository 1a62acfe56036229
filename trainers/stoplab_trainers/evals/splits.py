"""Labelled images for the probes: training, validation and test split."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from stoplab_platform.errors import DataError
from stoplab_platform.secret_store import Secrets
from stoplab_platform.settings import Settings
from stoplab_platform.specs.base import canonical_digest
from stoplab_platform.specs.data import EvalDataSpec
from stoplab_trainers.data.decode import decode_mask, decoded, whole, whole_mask
from stoplab_trainers.data.jpeg import Pixels
from stoplab_trainers.data.shards import ShardSet

log = logging.getLogger("stoplab.evaluate")
PARTS = ("train", "val", "test")
KEEP_BYTES = 512 << 20  # of a split's pixels
MOST_THREADS = 16


class Split:
    """Some samples of a set, shown whole at one size; small ones are decoded once."""

    def __init__(self, shards: ShardSet, ids: NDArray[np.int64], image_size: int) -> None:
        self.labels = _labels(shards)[ids]
        self.ids, self.size = ids, image_size
        self._shards = shards
        self._kept: UInt8[Tensor, "n 3 s s"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def keys(self) -> list[str]:
        """The samples' keys, in order."""
        return [self._shards.keys[sample] for sample in self.ids.tolist()]

    def batches(self, size: int) -> Iterator[UInt8[Tensor, "b 3 s s"]]:
        """All images in order, ``size`` at a time."""
        if self._kept is None and len(self) * 3 * self.size**2 <= KEEP_BYTES:
            self._kept = torch.cat(list(self._decoded(size)))
        if self._kept is None:
            yield from self._decoded(size)
        else:
            yield from torch.split(self._kept, size)

    def shown(
        self,
        plan: Iterable[NDArray[np.int64]],
        view: Callable[[int, Pixels], UInt8[Tensor, "3 s s"]],
    ) -> Iterator[UInt8[Tensor, "b 3 s s"]]:
        """A batch for each of the plan's rows: ``view`` of a row and the pixels as they are."""

        def image(row: int) -> UInt8[Tensor, "3 s s"]:
            return view(row, decoded(self._shards, int(self.ids[row])))

        threads = min(MOST_THREADS, os.cpu_count() or 1)
        with ThreadPoolExecutor(threads, thread_name_prefix="stoplab-eval") as pool:
            for rows in plan:
                yield torch.stack(list(pool.map(image, rows.tolist())))

    def masks(self, count: int) -> UInt8[Tensor, "n s s"]:
        """A class index for each pixel of the first images; DataError where one has no mask."""
        found = [decode_mask(self._shards.read_mask(int(i))) for i in self.ids[:count]]
        return torch.stack([whole_mask(one, self.size) for one in found])

    def _decoded(self, size: int) -> Iterator[UInt8[Tensor, "b 3 s s"]]:
        plan = np.split(np.arange(len(self)), range(size, len(self), size))
        return self.shown(plan, lambda _, image: whole(image, self.size))


@dataclass(frozen=True)
class Splits:
    """What probes are fitted on, chosen on, and reported on."""

    train: Split
    val: Split
    test: Split
    fingerprint: str
    """Of what the shards hold, how they are split, and the size they are shown at."""
    set_aside: Sequence[str]
    """Keys of the training set that are held out for validation."""
    cache: Path
    """Where results about these splits are remembered."""
    shared: Sequence[str] = ()
    """What two of the parts have in common, in sentences; nothing as a rule."""


@lru_cache(maxsize=2)
def load_splits(data: EvalDataSpec, image_size: int, cache: Path) -> Splits:
    """The splits that ``data`` names, remembered; DataError where they cannot be judged together.

    Where it names no validation split, a fixed part of the training split is set aside, by the
    hash of the keys; no probe is fitted on it.
    """
    train = ShardSet.open(data.train, cache, data.storage)
    test = ShardSet.open(data.test, cache, data.storage)
    if data.val is not None:
        val = ShardSet.open(data.val, cache, data.storage)
        fitted, held_out = np.arange(len(train)), np.arange(len(val))
    else:
        val, chosen = train, hash_split(train.keys, data.val_fraction)
        fitted, held_out = np.flatnonzero(~chosen), np.flatnonzero(chosen)
    _check_classes(data, train, {"validation": val, "test": test})
    shared = [
        f"{number} of {len(part)} images of the {name} split lie in the {other} split too"
        for (name, part), (other, whole) in (
            (("test", test), ("training", train)),
            (("test", test), ("validation", val)),
            (("validation", val), ("training", train)),
        )
        if not (part is whole or (other == "validation" and val is train))
        and (number := part.shared_with(whole))
    ]
    for fact in shared:
        log.warning("%s: what is reported there was seen before", fact)
    return Splits(
        train=Split(train, fitted, image_size),
        val=Split(val, held_out, image_size),
        test=Split(test, np.arange(len(test)), image_size),
        fingerprint=canonical_digest(
            [train.fingerprint, val.fingerprint, test.fingerprint, len(held_out), image_size]
        ),
        set_aside=Split(train, held_out, image_size).keys if data.val is None else (),
        cache=cache,
        shared=shared,
    )


def hash_split(keys: Sequence[str], fraction: float) -> NDArray[np.bool_]:
    """Which samples are held out: those whose keys hash lowest, ``fraction`` of them.

    A key's hash is fixed for ever: no seed and no order of shards moves a sample.
    """
    if len(keys) < 2:
        raise DataError("one labelled sample cannot be split; give data.eval.val")
    hashes = [hashlib.sha256(key.encode()).digest() for key in keys]
    ranked = sorted(range(len(keys)), key=lambda i: (hashes[i], i))
    count = min(max(1, round(len(keys) * fraction)), len(keys) - 1)
    held_out = np.zeros(len(keys), dtype=np.bool_)
    held_out[ranked[:count]] = True
    return held_out


def _check_classes(data: EvalDataSpec, train: ShardSet, others: Mapping[str, ShardSet]) -> None:
    """DataError where one index is two classes: each set's builder numbers those that it sees."""
    options = Secrets(Settings()).options(data.storage) if data.storage else {}
    fitted = train.class_names(options)
    for name, part in others.items():
        pairs = enumerate(zip(fitted, part.class_names(options), strict=False))
        for number, (one, other) in pairs:
            if one != other:
                raise DataError(
                    f"data.eval: class {number} is {one!r} in the training split and {other!r} in "
                    f"the {name} split; build both from the same classes, or with class indices "
                    "as labels"
                )


def _labels(shards: ShardSet) -> NDArray[np.int64]:
    if shards.labels is None:
        raise DataError(
            f"evaluation needs labels, and sample {shards.unlabelled} has none (a `.cls` member "
            "with the class index)"
        )
    return shards.labels
