"""JPEGs to pixels by libjpeg-turbo, and no more of them than is asked for."""

from __future__ import annotations

import re

import numpy as np
import simplejpeg
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

MOST_PIXELS = 89_478_485  # where PIL warns of decompression bombs: 256 MiB in RGB
START, END = b"\xff\xd8", b"\xff\xd9"
BASELINE = b"\xff\xc0"  # the header of a frame whose rows come from top to bottom
BEFORE_FRAME = {bytes((0xFF, code)) for code in (0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0))}
"""Segments with a length: tables, the restart interval, comments, applications' own."""
CONTEXT = 1  # the row below, which the colours of a row are interpolated from
ROWS_LEFT = re.compile("extraneous bytes before marker 0xd[0-79]$")
"""What libjpeg says of rows below the last: that it looks for the end, or for a restart."""


def size(data: bytes) -> tuple[int, int]:
    """Height and width. ValueError: no JPEG, or left to PIL."""
    if not data.startswith(START):
        raise ValueError("no JPEG")
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    if height * width > MOST_PIXELS or colours not in ("Gray", "YCbCr", "RGB"):
        raise ValueError("left to PIL")
    return height, width


def decode(data: bytes) -> Pixels:
    """RGB: [height, width, 3]. ValueError: left to PIL."""
    return _decode(data, *size(data))


def decode_top(data: bytes, size: tuple[int, int], rows: int, shrink: int = 1) -> Pixels:
    """RGB at 1 / ``shrink`` of its `size`, rounded up: the first ``rows``, and perhaps others.

    Rows come from top to bottom, and a decoder ends where the header says: with another height
    there, the rows below are neither decoded nor missed. ValueError: left to PIL.
    """
    height, width = size
    fewer = (rows + CONTEXT) * shrink
    shorter = _with_height(data, fewer) if fewer < height else None
    if shorter is not None:
        pixels = np.empty((rows + CONTEXT, -(-width // shrink), 3), np.uint8)
        try:
            return _decode(shorter, fewer, width, shrink, pixels)
        except ValueError as error:
            if ROWS_LEFT.search(str(error)):  # the first thing it came upon: all pixels are there
                return pixels
    return _decode(data, height, width, shrink)


def _decode(
    data: bytes | bytearray, height: int, width: int, shrink: int = 1, room: Pixels | None = None
) -> Pixels:
    """ValueError also for what libjpeg only warns of."""
    smallest = {"min_height": -(-height // shrink), "min_width": -(-width // shrink)}
    pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", buffer=room, **smallest)
    return pixels


def _with_height(data: bytes, height: int) -> bytearray | None:
    """A baseline JPEG with another height in its header; None for any other, and without an end.

    With restarts libjpeg stops at the next one, and would not come upon the end that is missing:
    whether a JPEG can be read would depend on the crop.
    """
    at = len(START)
    while (marker := data[at : at + 2]) in BEFORE_FRAME:
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    if marker != BASELINE or data.rfind(END, at) < 0:
        return None
    changed = bytearray(data)
    changed[at + 5 : at + 7] = height.to_bytes(2)  # after marker, length and precision
    return changed
