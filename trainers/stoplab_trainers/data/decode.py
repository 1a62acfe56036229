"""From an image's bytes to pixels: decoding, the training crop, the whole image."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageFilter, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from stoplab_platform.errors import DataError
from stoplab_platform.specs.data import DataSpec
from stoplab_trainers.data import jpeg
from stoplab_trainers.data.jpeg import MOST_PIXELS, Pixels
from stoplab_trainers.data.shards import ShardSet

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")  # and none that runs programs
ATTEMPTS = 10
NUM_UNIFORMS = 2 * ATTEMPTS + 6
ASPECT = (3 / 4, 4 / 3)
BLUR_STD = (0.1, 2.0)
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's "L"
LONGEST = 8  # sides: of what is longer, the middle
SHRINKS = (8, 4, 2)  # the fractions of a JPEG for which libjpeg-turbo has fast code


class BadImage(DataError):
    """An image's bytes are there, and no image can be made of them."""


def decoded(shards: ShardSet, sample_id: int) -> Pixels:
    """A sample's image in RGB: [height, width, 3]. BadImage names the sample."""
    with named(shards, sample_id):
        return decode(shards.read(sample_id))


@contextmanager
def named(shards: ShardSet, sample_id: int) -> Iterator[None]:
    """BadImage of the block names the sample."""
    try:
        yield
    except BadImage as error:
        raise BadImage(f"sample {shards.name(sample_id)}: {error}") from error


def size_of(data: bytes) -> tuple[int, int]:
    """Height and width of any image, of which only the header is read. BadImage as `decode`."""
    try:
        return jpeg.size(data)
    except ValueError:
        with _opened(data) as image:
            return image.height, image.width


def decode(data: bytes) -> Pixels:
    """Any image to RGB: [height, width, 3]. BadImage when it cannot be read, or is too large.

    simplejpeg and PIL give the same pixels for a JPEG; PIL also reads what simplejpeg refuses
    (CMYK, bytes between segments).
    """
    try:
        return jpeg.decode(data)
    except ValueError:
        with _opened(data) as image:
            return np.array(_rgb(image))


def decode_mask(data: bytes) -> Pixels:
    """A PNG of class indices, grey or with a palette, 8 bits: [height, width]. DataError if not."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.mode not in ("L", "P"):
                raise DataError(f"a mask has 8 grey bits or a palette; this one is {image.mode}")
            return np.array(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"no mask that can be read: {error}") from error


def random_crop(
    image: Pixels, u: NDArray[np.float64], data: DataSpec
) -> UInt8[Tensor, "3 side side"]:
    """A random resized crop, then flip, grey and blur as ``data`` says.

    ``u`` holds NUM_UNIFORMS numbers in [0, 1) and decides everything. The crop's law is
    torchvision's RandomResizedCrop: area even in crop_scale, logarithm of the aspect even in
    3/4 to 4/3, ten attempts, else the largest central crop. What follows is the published code's
    (ijepa:src/transforms.py@52c1ae9); its colour jitter has strength 0 in all configs.
    """
    height, width, _ = image.shape
    return _augmented(image, crop_box(height, width, u, data.crop_scale), u, data)


def crop_of(encoded: bytes, u: NDArray[np.float64], data: DataSpec) -> UInt8[Tensor, "3 side side"]:
    """The `random_crop` of an image's bytes; of a JPEG no more is decoded than the crop needs.

    That is no row below it, and it is the same crop. Where ``data.decode`` is "scaled" it is near:
    libjpeg decodes at 1/2, 1/4 or 1/8 of the size from fewer coefficients, and the smallest is
    taken in which the crop has ``data.image_size`` pixels a side or more. Its edges are those of
    the smaller image's pixels. BadImage as `decode`.
    """
    try:
        size = jpeg.size(encoded)
        top, left, h, w = crop_box(*size, u, data.crop_scale)
        shrinks = SHRINKS if data.decode == "scaled" else ()
        shrink = next((by for by in shrinks if min(h, w) >= by * data.image_size), 1)
        edges = (top, left, top + h, left + w)
        top, left, bottom, right = (round(edge / shrink) for edge in edges)
        image = jpeg.decode_top(encoded, size, bottom, shrink)
    except ValueError:
        return random_crop(decode(encoded), u, data)
    return _augmented(image, (top, left, bottom - top, right - left), u, data)


def whole(image: Pixels, size: int) -> UInt8[Tensor, "3 size size"]:
    """The shorter side resized to ``size``, and the centre of the longer one."""
    image = _middle(image)
    h, w, rows, columns = _whole_box(image, size)
    return _resized(image, h, w)[:, rows, columns]


def whole_mask(mask: Pixels, size: int) -> UInt8[Tensor, "size size"]:
    """As `whole`, each pixel that of the nearest one: classes are not mixed."""
    mask = _middle(mask)
    h, w, rows, columns = _whole_box(mask, size)
    grown = functional.interpolate(
        torch.from_numpy(mask)[None, None], size=(h, w), mode="nearest-exact"
    )
    return grown[0, 0, rows, columns]


def crop_box(
    height: int, width: int, u: NDArray[np.float64], scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width (pixels) of a random resized crop."""
    area = height * width
    for attempt in range(ATTEMPTS):
        share = scale[0] + u[2 * attempt] * (scale[1] - scale[0])
        low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
        aspect = math.exp(low + u[2 * attempt + 1] * (high - low))
        w = round(math.sqrt(area * share * aspect))
        h = round(math.sqrt(area * share / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(u[2 * ATTEMPTS] * (height - h + 1))
            left = int(u[2 * ATTEMPTS + 1] * (width - w + 1))
            return top, left, h, w
    w, h = width, height
    if width / height < ASPECT[0]:
        h = round(w / ASPECT[0])
    elif width / height > ASPECT[1]:
        w = round(h * ASPECT[1])
    return (height - h) // 2, (width - w) // 2, h, w


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """By PIL, which has read its header. BadImage, also of what the block comes upon."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:  # before any of them is there
                raise BadImage(
                    f"{image.width}x{image.height} pixels: more than {MOST_PIXELS} are not decoded"
                )
            yield image
    except UnidentifiedImageError as error:
        raise BadImage(f"no image that can be read: not one of {', '.join(FORMATS)}") from error
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # of broken bytes, PIL's readers raise errors of any kind
        raise BadImage(f"no image that can be read: {error}") from error


def _augmented(
    image: Pixels, box: tuple[int, int, int, int], u: NDArray[np.float64], data: DataSpec
) -> UInt8[Tensor, "3 side side"]:
    top, left, h, w = box
    pixels = _resized(image[top : top + h, left : left + w], data.image_size, data.image_size)
    flip, grey, blur, std = u[2 * ATTEMPTS + 2 :]
    if data.hflip and flip < 0.5:
        pixels = pixels.flip(-1)
    if grey < data.grayscale:
        pixels = _grey(pixels)
    if blur < data.blur:
        pixels = _blurred(pixels, BLUR_STD[0] + std * (BLUR_STD[1] - BLUR_STD[0]))
    return pixels


def _middle(image: Pixels) -> Pixels:
    """Of a strip, the middle: resized as a whole it could take all memory there is."""
    most = LONGEST * min(image.shape[:2])
    rows, columns = (_centre(side, min(side, most)) for side in image.shape[:2])
    return image[rows, columns]


def _whole_box(image: Pixels, size: int) -> tuple[int, int, slice, slice]:
    """Height and width to resize to, and what of it is the central square."""
    height, width = image.shape[:2]
    scale = size / min(height, width)
    h, w = max(size, round(height * scale)), max(size, round(width * scale))
    return h, w, _centre(h, size), _centre(w, size)


def _centre(side: int, length: int) -> slice:
    start = (side - length) // 2
    return slice(start, start + length)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") and image.format != "PPM":
        raise ValueError(f"pixels of 32 bits (mode {image.mode}) have no range that is known")
    if image.mode.startswith("I"):  # 16 bits, which PIL would cut off at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _resized(image: Pixels, height: int, width: int) -> UInt8[Tensor, "3 height width"]:
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    if image.shape[:2] == (height, width):
        return pixels
    return functional.interpolate(
        pixels[None], size=(height, width), mode="bilinear", antialias=True
    )[0]


def _grey(pixels: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 h w"]:
    weights = torch.tensor(GREY)[:, None, None]
    return (pixels * weights).sum(0).round().to(torch.uint8).expand_as(pixels)


def _blurred(pixels: UInt8[Tensor, "3 h w"], std: float) -> UInt8[Tensor, "3 h w"]:
    image = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    blurred = image.filter(ImageFilter.GaussianBlur(float(std)))
    return torch.from_numpy(np.array(blurred)).permute(2, 0, 1)
