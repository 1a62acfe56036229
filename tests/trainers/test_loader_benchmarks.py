"""The benchmarks of the loader run, and compare what is the same."""

from __future__ import annotations

import io
import json
import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import pytest
from PIL import Image

from stoplab_trainers.data import loader

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import harness
import loader_96
import loader_224
import loaders
import photos
import tar


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(loader, "KEEP_BYTES", loader.KEEP_BYTES)  # benchmarks set it


def test_photos_are_jpegs_of_the_size_of_imagenets() -> None:
    encoded = [photos.photo(seed) for seed in range(12)]
    assert encoded[3] == photos.photo(3), "a function of the number"
    assert 60_000 < sum(map(len, encoded)) / len(encoded) < 95_000
    image = Image.open(io.BytesIO(encoded[0]))
    assert sorted(image.size) == [375, 500]
    assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]  # type: ignore[attr-defined]


def test_both_sides_give_the_same_pixels_at_224() -> None:
    results, psnr_db = loader_224.measure(4, rounds=2)
    assert [result.name for result in results] == ["loader_224", "of_decode", "as_used"]
    assert psnr_db["min"] > 50
    assert results[0].ratio > 0


def test_scaled_crops_are_near_at_96() -> None:
    results, psnr_db = loader_96.measure(4, rounds=2)
    assert [result.name for result in results] == [
        "loader_96", "full", "scaled_as_used", "full_as_used"
    ]  # fmt: skip
    assert 25 < psnr_db["min"] <= psnr_db["median"] < 50, "they are near, not the same"


def test_what_a_child_takes_counts() -> None:
    before, own, deadline = loaders.cpu_seconds(), time.process_time(), time.monotonic() + 60
    child = multiprocessing.get_context("spawn").Process(target=_count_for_ever)
    child.start()
    try:
        while loaders.cpu_seconds() - before < 0.5 + time.process_time() - own:
            assert time.monotonic() < deadline, "the child's time was not counted"
            time.sleep(0.05)
    finally:
        child.kill()
        child.join()


def _count_for_ever() -> None:
    while True:
        pass


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset's
def test_both_readers_read_everything() -> None:
    result = tar.measure(4, rounds=2)
    assert (result.name, result.floor) == ("tar", 2)


def test_a_document_is_of_the_benchmarks_own_name_and_passes_with_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["loader_x.py", "--json"])
    good = harness.Result("loader_x", 3.0, (2.9, 3.1), 2.0, 2.5, None, True)
    bad = harness.Result("of_decode", 0.5, (0.5, 0.5), 0.6, None, None, False)
    with pytest.raises(SystemExit) as ended:
        harness.tell("loader_x", [good, bad], psnr_db=60.0)
    told = json.loads(capsys.readouterr().out)
    assert ended.value.code == 1
    assert {k: told[k] for k in ("name", "ratio", "floor", "aim", "passed", "psnr_db")} == {
        "name": "loader_x", "ratio": 3.0, "floor": 2.0, "aim": 2.5, "passed": False, "psnr_db": 60.0
    }  # fmt: skip
