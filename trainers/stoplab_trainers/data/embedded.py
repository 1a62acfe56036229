"""Image sets that need no download: `digits`, scikit-learn's 8x8 digits shown at 16x16 pixels."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from stoplab_platform.errors import DataError
from stoplab_platform.specs.data import EMBEDDED
from stoplab_trainers.data.cache import locked
from stoplab_trainers.data.pack import write_shard

VERSION = 1  # in the folder's name: raise it when a byte of the shards changes
SIDE = 16
NUM_TEST = 540
SHARDS = {"train": 4, "test": 2}


def is_embedded(url: str) -> bool:
    """Whether ``url`` names an embedded set or a split of one: `digits`, `digits/test`."""
    return url.partition("/")[0] in EMBEDDED


def embedded_shards(url: str, cache: Path) -> list[Path]:
    """The shards of an embedded set's split (`train` unless named), written on first use."""
    name, _, split = url.partition("/")
    split = split or "train"
    if split not in SHARDS:
        raise DataError(f"{url!r}: the set {name!r} has the splits {', '.join(SHARDS)}")
    folder = cache / "embedded" / f"{name}-v{VERSION}"
    if not folder.is_dir():
        with locked(folder):
            _write_once(folder)
    return sorted(folder.glob(f"{split}-*.tar"))


def _write_once(folder: Path) -> None:
    if folder.is_dir():
        return
    draft = folder.with_name(f".{folder.name}.{uuid4().hex[:8]}")
    draft.mkdir()
    try:
        _write_digits(draft)
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster, with the same bytes
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_digits(folder: Path) -> None:
    """1,257 training and 540 test images, every class in its share, in an order of their own."""
    digits = load_digits()
    everything = np.arange(len(digits.target))
    train, test = train_test_split(
        everything, test_size=NUM_TEST, stratify=digits.target, random_state=0
    )
    for split, ids in (("train", train), ("test", test)):
        for number, part in enumerate(np.array_split(ids, SHARDS[split])):
            samples = _samples(part, digits.images, digits.target)
            write_shard(folder / f"{split}-{number:06d}.tar", samples)


def _samples(
    ids: NDArray[np.int64], images: NDArray[np.float64], labels: NDArray[np.int64]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    for i in ids:
        yield f"digit-{i:04d}", {"cls": str(labels[i]).encode(), "png": _png(images[i])}


def _png(image: NDArray[np.float64]) -> bytes:
    """The image (0 to 16, 8x8) as a grey PNG.

    Stored, not deflated: then the bytes do not depend on the zlib at hand.
    """
    grey = Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8))
    buffer = io.BytesIO()
    grey.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "png", compress_level=0)
    return buffer.getvalue()
