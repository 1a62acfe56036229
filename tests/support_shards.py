"""Small shards and images, for tests."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stoplab_trainers.data.pack import write_shard

Pixels = NDArray[np.uint8]


def picture(number: int, height: int = 24, width: int = 32) -> Pixels:
    """A smooth colour image of its own for each number: [height, width, 3]."""
    random = np.random.default_rng(number)
    small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: Pixels, kind: str = "png", **options: Any) -> bytes:
    """An image as a file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def shard(path: Path, numbers: Sequence[int], *, labels: bool = True, kind: str = "png") -> Path:
    """Write a shard of one picture a number, class = number modulo 3."""
    write_shard(path, [(f"s{n:04d}", members(n, labels, kind)) for n in numbers])
    return path


def members(number: int, labels: bool = True, kind: str = "png") -> dict[str, bytes]:
    """The members of one sample, by extension."""
    image = {kind: encoded(picture(number), {"jpg": "jpeg"}.get(kind, kind))}
    return {"cls": str(number % 3).encode(), **image} if labels else image


def tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write any members, in order, by their whole names."""
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def three_shards(folder: Path, counts: Sequence[int] = (5, 7, 4), **options: Any) -> str:
    """Write numbered shards, samples counted through; their name with braces."""
    first = 0
    for number, count in enumerate(counts):
        shard(folder / f"part-{number:06d}.tar", range(first, first + count), **options)
        first += count
    return str(folder / f"part-{{000000..{len(counts) - 1:06d}}}.tar")
