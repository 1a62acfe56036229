"""From bytes to pixels."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import center_crop, resize

from stoplab_platform.errors import DataError
from stoplab_platform.randomness import Stream, row_keys
from stoplab_platform.randomness import uniforms as draws
from stoplab_platform.specs.data import DataSpec
from stoplab_trainers.data import jpeg
from stoplab_trainers.data.decode import (
    ASPECT,
    ATTEMPTS,
    BLUR_STD,
    NUM_UNIFORMS,
    BadImage,
    crop_box,
    crop_of,
    decode,
    random_crop,
    whole,
    whole_mask,
)
from support_shards import encoded, picture


def data(**options: object) -> DataSpec:
    return DataSpec.model_validate({"train": "digits", "image_size": 16, **options})


def uniforms(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(NUM_UNIFORMS)


@pytest.mark.parametrize("kind", ["png", "webp", "bmp", "tiff", "gif"])
def test_every_common_kind_of_image_is_read(kind: str) -> None:
    options = {"lossless": True} if kind == "webp" else {}
    pixels = picture(1) if kind != "gif" else np.full((24, 32, 3), 255, dtype=np.uint8)
    np.testing.assert_array_equal(decode(encoded(pixels, kind, **options)), pixels)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "progressive"])
def test_jpegs_have_the_pixels_that_pil_gives_them(mode: str) -> None:
    image = Image.fromarray(picture(2)).convert("RGB" if mode == "progressive" else mode)
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=90, progressive=mode == "progressive")
    expected = np.array(Image.open(buffer).convert("RGB"))
    found = decode(buffer.getvalue())
    assert found.shape == (24, 32, 3)
    assert np.abs(found.astype(int) - expected).max() <= (1 if mode == "RGB" else 0)


def test_grey_palette_transparent_and_deep_images_become_rgb() -> None:
    rgb = Image.fromarray(picture(3))
    grey = np.array(rgb.convert("L"))
    for mode in ("L", "LA", "1", "P", "RGBA"):
        buffer = io.BytesIO()
        rgb.convert(mode).save(buffer, "png")
        expected = np.array(rgb.convert(mode).convert("RGB"))
        np.testing.assert_array_equal(decode(buffer.getvalue()), expected, mode)
    seen_through = rgb.convert("P")
    buffer = io.BytesIO()
    seen_through.save(buffer, "png", transparency=bytes(range(256)))
    np.testing.assert_array_equal(decode(buffer.getvalue()), np.array(seen_through.convert("RGB")))
    deep = encoded(grey.astype(np.uint16) * 257)  # type: ignore[arg-type]
    height, width = grey.shape
    raw = f"P5 {width} {height} 65535\n".encode() + (grey.astype(">u2") * 257).tobytes()
    for kind in (deep, raw):
        np.testing.assert_array_equal(decode(kind), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pixels_without_a_range_are_refused(kind: Any) -> None:
    pixels = encoded(np.full((8, 8), 300, dtype=kind), "tiff")
    with pytest.raises(BadImage, match="pixels of 32 bits"):
        decode(pixels)


def test_a_jpeg_with_bytes_between_its_segments_is_read() -> None:
    photo = encoded(picture(4), "jpeg")
    found = decode(photo[:20] + b"\x00\x00" + photo[20:])
    np.testing.assert_array_equal(found, np.array(Image.open(io.BytesIO(photo))))


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_broken_images_are_refused(kind: str) -> None:
    whole_file = encoded(picture(5), kind)
    for broken in (whole_file[: len(whole_file) // 2], whole_file[:20], b"", b"no image"):
        with pytest.raises(DataError, match="no image that can be read"):
            decode(broken)


def test_a_program_is_no_image() -> None:
    """PIL would hand PostScript to Ghostscript."""
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\nshowpage\n"
    with pytest.raises(DataError):
        decode(postscript)


def test_an_image_of_too_many_pixels_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("L", (16000, 12000)).save(buffer, "jpeg", quality=1)
    with pytest.raises(DataError, match="192000000 pixels"):
        decode(buffer.getvalue())


def test_the_crop_follows_the_published_law() -> None:
    """Against torchvision's: share of area, aspect and place of 4,000 crops."""
    height, width, scale = 60, 90, (0.3, 1.0)
    ours = np.array([crop_box(height, width, uniforms(seed), scale) for seed in range(4000)])
    torch.manual_seed(0)
    blank = torch.zeros(3, height, width)
    law = [RandomResizedCrop.get_params(blank, list(scale), list(ASPECT)) for _ in range(4000)]
    theirs = np.array(law)
    for column in range(4):
        low = np.quantile(ours[:, column], [0.05, 0.25, 0.5, 0.75, 0.95])
        high = np.quantile(theirs[:, column], [0.05, 0.25, 0.5, 0.75, 0.95])
        np.testing.assert_allclose(low, high, atol=2.5)
    top, left, h, w = ours.T
    assert (h * w >= 0.28 * height * width).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    assert (top + h == height).any()
    assert (left + w == width).any()


def test_a_crop_that_never_fits_is_central() -> None:
    u = uniforms(0)
    u[: 2 * ATTEMPTS] = 1 - 1e-9
    assert crop_box(10, 100, u, (0.9, 1.0)) == (0, (100 - round(40 / 3)) // 2, 10, round(40 / 3))
    assert crop_box(100, 10, u, (0.9, 1.0)) == ((100 - 13) // 2, 0, 13, 10)


def test_the_crop_is_resized_like_torchvisions() -> None:
    image, u = picture(6, 60, 80), uniforms(3)
    top, left, h, w = crop_box(60, 80, u, (0.3, 1.0))
    pixels = torch.from_numpy(image).permute(2, 0, 1)[:, top : top + h, left : left + w]
    expected = resize(pixels, [16, 16], InterpolationMode.BILINEAR, antialias=True)
    found = random_crop(image, u, data())
    assert found.dtype == torch.uint8
    assert (found.int() - expected.int()).abs().max() <= 1


def test_flip_grey_and_blur_happen_as_often_as_asked_and_do_what_they_say() -> None:
    image = picture(7, 16, 16)
    u = uniforms(1)
    plain = random_crop(image, u, data())
    flip, grey, blur, std = range(2 * ATTEMPTS + 2, NUM_UNIFORMS)
    u[[flip, grey, blur, std]] = 0.49, 0.19, 0.29, 0.5
    flipped = random_crop(image, u, data(hflip=True))
    assert torch.equal(flipped, plain.flip(-1))
    greyed = random_crop(image, u, data(grayscale=0.2))
    assert torch.equal(greyed[0], greyed[2])
    as_image = Image.fromarray(plain.permute(1, 2, 0).numpy())
    assert (greyed[0].int() - torch.from_numpy(np.array(as_image.convert("L")))).abs().max() <= 1
    blurred = random_crop(image, u, data(blur=0.3))
    expected = np.array(as_image.filter(ImageFilter.GaussianBlur(1.05)))
    np.testing.assert_array_equal(blurred.permute(1, 2, 0).numpy(), expected)
    u[[flip, grey, blur]] = 0.5, 0.2, 0.3
    untouched = random_crop(image, u, data(hflip=True, grayscale=0.2, blur=0.3))
    assert torch.equal(untouched, plain)


def test_flip_grey_and_blur_come_as_often_as_the_published_code_has_them() -> None:
    """ijepa:src/transforms.py with StoP's configs: 0.5, 0.2, 0.5, blur's width even in 0.1 to 2."""
    keys = row_keys(0, Stream.AUGMENT, 3, rows=np.arange(20_000))
    flip, grey, blur, std = draws(keys, NUM_UNIFORMS)[:, 2 * ATTEMPTS + 2 :].T
    for happens, share in ((flip < 0.5, 0.5), (grey < 0.2, 0.2), (blur < 0.5, 0.5)):
        assert abs(happens.mean() - share) < 4 * math.sqrt(share * (1 - share) / 20_000)
    together = np.corrcoef([flip, grey, blur, std])
    assert np.abs(together - np.eye(4)).max() < 0.03, "none follows from another"
    np.testing.assert_allclose(np.quantile(std, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.02)
    assert BLUR_STD == (0.1, 2.0)


SIZES = [(375, 500, 96), (375, 501, 40), (483, 321, 17), (90, 120, 64)]


@pytest.mark.parametrize(("height", "width", "side"), SIZES)
def test_a_scaled_crop_is_the_crop_from_fewer_coefficients(
    height: int, width: int, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = encoded(picture(9, height, width), "jpeg", quality=90)
    decode_top, shrinks = jpeg.decode_top, []

    def watched(data: bytes, size: tuple[int, int], rows: int, shrink: int) -> np.ndarray:
        shrinks.append(shrink)
        pixels = decode_top(data, size, rows, shrink)
        assert rows <= pixels.shape[0] <= -(-height // shrink)
        assert pixels.shape[1] == -(-width // shrink)
        return pixels

    monkeypatch.setattr(jpeg, "decode_top", watched)
    spec = data(image_size=side, decode="scaled", hflip=True, grayscale=0.2)
    for seed in range(40):
        u = uniforms(seed)
        found = crop_of(photo, u, spec)
        expected = random_crop(decode(photo), u, spec)
        shortest = min(crop_box(height, width, u, spec.crop_scale)[2:])
        assert shortest >= shrinks[-1] * side or shrinks[-1] == 1
        assert shrinks[-1] == 8 or shortest < 2 * shrinks[-1] * side
        error = (found.double() - expected.double()).square().mean()
        assert 10 * math.log10(255**2 / max(float(error), 1e-9)) > 30
        if shrinks[-1] == 1:
            assert torch.equal(found, expected)
    assert (set(shrinks) == {1}) == (side == 64)


@pytest.mark.parametrize("kind", ["png", "webp", "CMYK", "broken"])
def test_what_cannot_be_scaled_is_decoded_whole(kind: str) -> None:
    image = Image.fromarray(picture(10, 120, 160)).convert("CMYK" if kind == "CMYK" else "RGB")
    buffer = io.BytesIO()
    image.save(buffer, kind if kind in ("png", "webp") else "jpeg")
    u, spec = uniforms(4), data(decode="scaled")
    if kind == "broken":
        with pytest.raises(DataError, match="no image that can be read"):
            crop_of(buffer.getvalue()[:900], u, spec)
    else:
        expected = random_crop(decode(buffer.getvalue()), u, spec)
        assert torch.equal(crop_of(buffer.getvalue(), u, spec), expected)


@pytest.mark.parametrize(("height", "width"), [(60, 80), (80, 60), (33, 33), (10, 200), (16, 16)])
def test_the_whole_image_is_the_centre_of_the_resized_one(height: int, width: int) -> None:
    image = picture(8, height, width)
    found = whole(image, 16)
    assert found.shape == (3, 16, 16)
    scale = 16 / min(height, width)
    size = [round(height * scale), round(width * scale)]
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    expected = center_crop(resize(pixels, size, antialias=True), [16, 16])
    assert math.isclose(float((found.int() - expected.int()).abs().max()), 0, abs_tol=1)


@pytest.mark.parametrize(("height", "width"), [(1, 60_000), (60_000, 2)])
def test_of_a_strip_the_middle_is_seen(height: int, width: int) -> None:
    # Resized as a whole to 224 pixels it would be 9 GB.
    strip = np.zeros((height, width, 3), np.uint8)
    middle = strip.shape[0] // 2, strip.shape[1] // 2
    strip[max(0, middle[0] - 20) : middle[0] + 20, max(0, middle[1] - 20) : middle[1] + 20] = 255
    assert whole(strip, 224).min() == whole_mask(strip[..., 0], 224).min() == 255
