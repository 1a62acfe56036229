"""Of a JPEG only the rows that are needed: the same ones, whatever kind it is and how broken."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stoplab_platform.errors import DataError
from stoplab_platform.specs.data import DataSpec
from stoplab_trainers.data import jpeg
from stoplab_trainers.data.decode import NUM_UNIFORMS, crop_of, decode, random_crop, size_of
from support_shards import encoded, picture

HEIGHT, WIDTH = 101, 90


def noisy(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A picture whose rows all differ."""
    noise = np.random.default_rng(seed).integers(-60, 60, (height, width, 3))
    return (picture(seed, height, width) + noise).clip(0, 255).astype(np.uint8)


def assert_same_rows(photo: bytes, shrink: int = 1, fewer: bool = True) -> None:
    """For any number of rows; ``fewer``: and the others are spared."""
    size = jpeg.size(photo)
    height, width = (-(-side // shrink) for side in size)
    expected = jpeg.decode_top(photo, size, height, shrink)
    assert expected.shape == (height, width, 3)
    if shrink == 1:
        np.testing.assert_array_equal(expected, jpeg.decode(photo))
    for rows in range(1, height + 1):
        found = jpeg.decode_top(photo, size, rows, shrink)
        np.testing.assert_array_equal(found[:rows], expected[:rows])
        assert len(found) == (min(height, rows + jpeg.CONTEXT) if fewer else height)


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_fewer_rows_are_the_first_of_all(subsampling: str, shrink: int) -> None:
    photo = encoded(noisy(1), "jpeg", subsampling=subsampling, quality=90)
    assert_same_rows(photo, shrink)


@pytest.mark.parametrize(
    "options", [{"optimize": True}, {"restart_marker_rows": 1}, {"exif": True}]
)
def test_tables_restarts_and_other_segments_change_nothing(options: dict[str, object]) -> None:
    if "exif" in options:  # with a thumbnail, a JPEG within the JPEG
        options = {
            "exif": b"Exif\x00\x00" + encoded(noisy(2, 16, 16), "jpeg"),
            "comment": b"\xff\xc0",
        }
    assert_same_rows(encoded(noisy(1), "jpeg", **options))


def test_a_grey_one_has_fewer_rows_too() -> None:
    buffer = io.BytesIO()
    Image.fromarray(noisy(1)).convert("L").save(buffer, "jpeg")
    assert_same_rows(buffer.getvalue())


def test_a_progressive_one_is_decoded_whole() -> None:
    assert_same_rows(encoded(noisy(1), "jpeg", progressive=True), fewer=False)


def test_bytes_behind_the_end_are_no_rows() -> None:
    assert_same_rows(encoded(noisy(1), "jpeg") + bytes(10))


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}])
def test_what_is_cut_short_is_refused_though_the_rows_asked_for_are_there(
    options: dict[str, object],
) -> None:
    photo = encoded(noisy(1), "jpeg", **options)
    for length in range(len(photo)):
        with pytest.raises(ValueError):  # noqa: PT011
            jpeg.decode_top(photo[:length], (HEIGHT, WIDTH), 8)


@settings(deadline=None, max_examples=300)
@given(
    st.integers(0, 20), st.floats(0, 1), st.binary(min_size=1, max_size=3),
    st.sampled_from(["4:4:4", "4:2:0"]), st.sampled_from([0, 1]),
)  # fmt: skip
def test_a_broken_jpeg_gives_the_crop_that_it_would_give_whole(
    seed: int, place: float, others: bytes, subsampling: str, restarts: int
) -> None:
    """Or is refused as it would be."""
    photo = encoded(noisy(1), "jpeg", subsampling=subsampling, restart_marker_rows=restarts)
    at = 2 + int(place * (len(photo) - 2 - len(others)))
    broken = photo[:at] + others + photo[at + len(others) :]
    u, data = np.random.default_rng(seed).random(NUM_UNIFORMS), DataSpec(train="x", image_size=32)

    def crop(way: str) -> torch.Tensor | str:
        try:
            return (
                crop_of(broken, u, data) if way == "top" else random_crop(decode(broken), u, data)
            )
        except DataError as error:
            return str(error)

    found, expected = crop("top"), crop("whole")
    assert type(found) is type(expected)
    assert torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_the_size_is_that_of_the_pixels(kind: str) -> None:
    photo = encoded(noisy(1), kind)
    assert size_of(photo) == decode(photo).shape[:2] == (HEIGHT, WIDTH)
    with pytest.raises(DataError, match="no image that can be read"):
        size_of(photo[:10])
