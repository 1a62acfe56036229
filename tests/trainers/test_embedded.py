"""The embedded digits: the same everywhere, without a download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from stoplab_trainers.data.decode import decode
from stoplab_trainers.data.shards import ShardSet

FINGERPRINTS = {
    "digits/train": "ecd4480f62ad7c81feb494616070cb0cdd056bb21a0b90b6a454d18de85aff7a",
    "digits/test": "7af2226748cd33d04fef09ad038fd2e99f73f35fbfd87caf0f6428538dfe3d37",
}


def test_digits_are_split_by_class_and_hold_scikit_learns_images(shared_cache: Path) -> None:
    train, test = (ShardSet.open(f"digits/{part}", shared_cache) for part in ("train", "test"))
    assert (len(train), len(test)) == (1257, 540)
    assert set(train.keys).isdisjoint(test.keys)
    assert train.labels is not None
    assert test.labels is not None
    shares = [np.bincount(labels) / len(labels) for labels in (train.labels, test.labels)]
    np.testing.assert_allclose(shares[0], shares[1], atol=2e-3)
    digits = load_digits()
    for shards in (train, test):
        for sample in (0, len(shards) // 2, len(shards) - 1):
            number = int(shards.keys[sample].removeprefix("digit-"))
            assert shards.labels is not None
            assert digits.target[number] == shards.labels[sample]
            grey = np.round(digits.images[number] * 255 / 16).astype(np.uint8)
            shown = Image.fromarray(grey).resize((16, 16), Image.Resampling.BICUBIC)
            np.testing.assert_array_equal(decode(shards.read(sample))[..., 0], np.array(shown))


def test_digits_are_the_same_on_every_machine(tmp_path: Path) -> None:
    found = {name: ShardSet.open(name, tmp_path).fingerprint for name in FINGERPRINTS}
    assert found == FINGERPRINTS
    assert ShardSet.open("digits", tmp_path).fingerprint == found["digits/train"]
    (folder,) = (tmp_path / "embedded").glob("digits-*[0-9]")
    assert sorted(path.name for path in folder.iterdir()) == [
        "test-000000.tar", "test-000001.tar",
        "train-000000.tar", "train-000001.tar", "train-000002.tar", "train-000003.tar",
    ]  # fmt: skip


def test_every_shard_holds_every_class(shared_cache: Path) -> None:
    train = ShardSet.open("digits", shared_cache)
    assert train.labels is not None
    ends = np.cumsum(train.counts)
    for labels in np.split(train.labels, ends[:-1]):
        assert len(set(labels)) == 10
