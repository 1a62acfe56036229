"""Photo-like JPEGs, made and not downloaded: as a folder of files, and the same in shards.

500x375 pixels or the other way round, 4:2:0, quality 85 to 94, of 78 KB in the mean: as
ImageNet's. A picture is noise with a photo's spectrum, below some flat shapes with hard edges.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from stoplab_trainers.data.pack import write_shard

SIDES = (375, 500)
SLOPE = 1.28  # of the amplitudes over the frequency: that of photos (1 to 1.3), by the mean size
NUM_SHAPES = 12
PER_SHARD = 100
VERSION = 1


def photos(number: int) -> Path:
    """A folder with ``number`` photos: `files/CLASS/*.jpg` and `shards/*.tar` hold the same.

    Made once, and kept below the machine's temporary folder.
    """
    folder = Path(tempfile.gettempdir()) / f"stoplab-photos-{os.getuid()}-{VERSION}-{number}"
    if folder.exists():
        return folder
    making = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    encoded = [photo(seed) for seed in range(number)]
    for seed, data in enumerate(encoded):
        path = making / "files" / f"class-{seed % 10}" / f"{seed:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (making / "shards").mkdir()
    for first in range(0, number, PER_SHARD):
        samples = (
            (f"{first + n:05d}", {"jpg": data, "cls": str((first + n) % 10).encode()})
            for n, data in enumerate(encoded[first : first + PER_SHARD])
        )
        write_shard(making / "shards" / f"{first // PER_SHARD:06d}.tar", samples)
    try:
        making.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(making)
    return folder


def photo(seed: int) -> bytes:
    """The JPEG of one number."""
    random = np.random.default_rng(seed)
    height, width = SIDES if random.random() < 0.75 else SIDES[::-1]
    luma = _noise(random, height, width)
    chroma = [0.35 * _noise(random, height, width) for _ in range(2)]
    pixels = 118 + 52 * np.stack([luma, *chroma], axis=-1) * random.uniform(0.7, 1.3)
    pixels[..., 1:] += 10
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8), "YCbCr").convert("RGB")
    _draw_shapes(image, random)
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=int(random.integers(85, 95)), subsampling="4:2:0")
    return buffer.getvalue()


def _noise(random: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Noise of mean 0 and deviation 1 with a photo's spectrum: [height, width]."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = 1.0
    waves = np.fft.rfft2(random.standard_normal((height, width))) / frequency**SLOPE
    waves[0, 0] = 0.0
    field = np.fft.irfft2(waves, s=(height, width))
    return field / field.std()


def _draw_shapes(image: Image.Image, random: np.random.Generator) -> None:
    draw = ImageDraw.Draw(image)
    for _ in range(NUM_SHAPES):
        x, y = random.uniform(0, image.width), random.uniform(0, image.height)
        w, h = random.uniform(10, 120, 2)
        colour = tuple(int(c) for c in random.integers(0, 256, 3))
        shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
        shape((x, y, x + w, y + h), fill=colour)
