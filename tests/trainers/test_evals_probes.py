"""kNN with several k, published subsets, location at a block, moved images: edges of the probes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from stoplab_platform.errors import DataError, DataMissing
from stoplab_platform.specs.data import DataSpec, EvalDataSpec
from stoplab_platform.specs.evals import (
    KnnEval,
    LinearEval,
    LocationEval,
    LowShotEval,
    RobustnessEval,
)
from stoplab_trainers.data.pack import write_shard
from stoplab_trainers.evals.features import Bank
from stoplab_trainers.evals.knn import TEMPERATURE, knn_predict
from stoplab_trainers.evals.linear import STRENGTHS
from stoplab_trainers.evals.logistic import fit_path
from stoplab_trainers.evals.low_shot import listed_rows
from stoplab_trainers.evals.robustness import cropped, moved
from stoplab_trainers.evals.suite import Splits, load_splits, outcomes, pixel_encoder
from stoplab_trainers.model.jepa import build_model
from stoplab_trainers.model.positions import sincos_2d
from support_runs import tiny
from support_shards import members, shard


@pytest.fixture(scope="module")
def digits(shared_cache: Path) -> Splits:
    data = DataSpec(train="digits", image_size=16).eval_data()
    assert data is not None
    return load_splits(data, 16, shared_cache)


def brute_force(train, labels, judged, k: int) -> list[int]:  # type: ignore[no-untyped-def]
    """The vote row by row; of equally near rows the first, of equal votes the lowest class."""
    told = []
    for row in judged:
        similarity = train @ row / np.linalg.norm(train, axis=1) / np.linalg.norm(row)
        nearest = np.argsort(-similarity, kind="stable")[:k]
        votes = np.zeros(labels.max() + 1)
        for i in nearest:
            votes[labels[i]] += np.exp((similarity[i] - 1) / TEMPERATURE)
        told.append(int(votes.argmax()))
    return told


# kNN


def test_ties_and_too_many_neighbours() -> None:
    """One-hot features: similarities are 0 or 1, so nearly all rows are equally near."""
    random = np.random.default_rng(0)
    train = np.eye(4, dtype=np.float32)[random.integers(0, 4, 60)]
    judged = np.eye(4, dtype=np.float32)[random.integers(0, 4, 20)]
    labels = random.integers(0, 5, 60)
    ks = (1, 3, 8, 30, 59, 60, 500)
    found = knn_predict(train, labels, judged, ks)
    for k in ks:
        assert found[k].tolist() == brute_force(train, labels, judged, k), k
    assert knn_predict(train, labels, judged, [3])[3].tolist() == found[3].tolist()


def test_the_best_k_on_the_validation_split_is_reported(digits: Splits) -> None:
    sweep = KnnEval(kind="knn", k=(1, 20, 900))
    singles = [KnnEval(kind="knn", k=k) for k in (1, 20, 900)]
    by_split = {}
    for on in ("val", "test"):
        told = outcomes(pixel_encoder(), [sweep, *singles], digits, on=on, seed=0)  # type: ignore[arg-type]
        by_split[on] = [one.metrics["knn_top1"] for one in told]
    best = int(np.argmax(by_split["val"][1:]))
    assert by_split["test"][0] == by_split["test"][1 + best]
    (found,) = outcomes(pixel_encoder(), [sweep], digits, on="test", seed=0)
    assert found.chosen == {"k": float((1, 20, 900)[best])}
    assert found.detail["k"]["900"] == {"val": by_split["val"][3], "test": by_split["test"][3]}
    assert len(set(by_split["val"][1:])) > 1


# Linear and low-shot


def test_the_probe_is_as_right_as_scikit_learns(digits: Splits) -> None:
    """On an encoder's features, at every strength, accuracy to 1e-4: the same images right."""
    bank = Bank(build_model(tiny(model__width=32)).encoder, digits)
    scaler = StandardScaler().fit(bank.features("train"))
    train, test = (scaler.transform(bank.features(part)) for part in ("train", "test"))
    labels = torch.from_numpy(digits.train.labels)
    for fit in fit_path(torch.from_numpy(train), labels, STRENGTHS):
        exact = LogisticRegression(C=fit.strength, tol=1e-8, max_iter=20_000)
        exact.fit(train.astype(np.float64), digits.train.labels)
        told = fit.predict(torch.from_numpy(test)).numpy()
        found = (told == digits.test.labels).mean()
        assert found == pytest.approx(exact.score(test, digits.test.labels), abs=1e-4)


def test_the_published_penalty_is_a_fixed_one_without_intercept(digits: Splits) -> None:
    encoder = build_model(tiny()).encoder
    protocol = LowShotEval(kind="low_shot", fraction=1.0, draws=1, penalty="published")
    (found,) = outcomes(encoder, [protocol], digits, on="test", seed=0)
    assert found.detail["draws"][0]["C"] == pytest.approx(400)
    bank = Bank(encoder, digits)
    scaler = StandardScaler().fit(bank.features("train"))
    train, test = (scaler.transform(bank.features(part)) for part in ("train", "test"))
    exact = LogisticRegression(C=400, fit_intercept=False, tol=1e-8, max_iter=20_000)
    exact.fit(train.astype(np.float64), digits.train.labels)
    expected = exact.score(test, digits.test.labels)
    assert found.metrics["low_shot_top1"] == pytest.approx(expected, abs=4e-3)


@pytest.fixture
def listed(tmp_path: Path) -> tuple[Splits, Path]:
    train = [(f"n{n % 3}/pic_{n}", members(n)) for n in range(12)]
    write_shard(tmp_path / "train.tar", [*train, ("n9/pic_0", members(0))])
    shard(tmp_path / "other.tar", range(6))
    other, path = str(tmp_path / "other.tar"), str(tmp_path / "train.tar")
    data = EvalDataSpec(train=path, val=other, test=other)
    return load_splits(data, 16, tmp_path / "cache"), tmp_path / "list.txt"


def test_a_published_list_names_keys_or_files(listed: tuple[Splits, Path]) -> None:
    splits, path = listed
    path.write_text("pic_3.JPEG\nn1/pic_4\n\n  n2/pic_5.png \npic_3.JPEG\nn0/pic_0.jpg\n")
    rows, held_out = listed_rows(path, splits)
    assert (rows.tolist(), held_out) == ([0, 3, 4, 5], 0)
    protocol = LowShotEval(kind="low_shot", list=str(path), draws=5)
    (found,) = outcomes(pixel_encoder(), [protocol], splits, on="test", seed=0)
    assert len(found.detail["draws"]) == 1
    assert found.detail["listed"] == 4
    assert found.predictions["low_shot_top1"].shape == (6,)


def test_a_list_that_does_not_fit_is_one_clear_error(listed: tuple[Splits, Path]) -> None:
    splits, path = listed
    path.write_text("pic_3\nnone\npic_0.png\nother.png\n")
    with pytest.raises(DataError, match=r"of 4 names 2 are no sample .*\(13 samples\) and 1 could"):
        listed_rows(path, splits)
    with pytest.raises(DataMissing, match="cannot be read"):
        listed_rows(path.with_name("nothing.txt"), splits)


def test_listed_samples_that_are_held_out_are_not_fitted_on(tmp_path: Path) -> None:
    path = str(shard(tmp_path / "a.tar", range(20)))
    splits = load_splits(EvalDataSpec(train=path, test=path, val_fraction=0.25), 16, tmp_path)
    names = tmp_path / "list.txt"
    names.write_text("".join(f"s{n:04d}.png\n" for n in range(20)))
    rows, held_out = listed_rows(names, splits)
    assert (rows.tolist(), held_out) == (list(range(15)), 5)


# Location


class Table(nn.Module):
    """Patch features that are the table of positions, perhaps shuffled image by image."""

    def __init__(self, shuffled: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(sincos_2d(16, 4))
        self.shuffled, self.calls = shuffled, 0

    def forward(self, images: Tensor) -> Tensor:
        rows = self.table.expand(len(images), 16, 16)
        if not self.shuffled:
            return rows
        self.calls += 1
        generator = torch.Generator().manual_seed(self.calls)
        orders = torch.stack([torch.randperm(16, generator=generator) for _ in range(len(images))])
        return rows.gather(1, orders[:, :, None].expand_as(rows))

    def features(self, images: Tensor) -> Tensor:
        return self(images).mean(dim=1)


def test_location_is_read_from_a_table_of_positions_and_not_from_shuffled_ones(
    digits: Splits,
) -> None:
    protocol = LocationEval(kind="location")
    (found,) = outcomes(Table(shuffled=False), [protocol], digits, on="test", seed=0)
    assert found.metrics["location_r2"] > 0.99
    (none,) = outcomes(Table(shuffled=True), [protocol], digits, on="test", seed=0)
    assert none.metrics["location_r2"] < 0.05


def test_location_at_a_block_looks_there(digits: Splits) -> None:
    encoder = build_model(tiny(model__depth=2)).encoder
    bank = Bank(encoder, digits)
    found = {block: bank.patches("val", block) for block in (None, 0, 1, 2)}
    np.testing.assert_allclose(found[2], found[None], atol=1e-5)
    assert not np.allclose(found[0], found[1])
    told = outcomes(bank, [LocationEval(kind="location", block=0)], digits, on="val", seed=0)
    assert told[0].metrics["location_r2"] > 0.85, "positions are added to the embedding"
    assert (told[0].detail["block"], told[0].detail["rows"]) == (0, 256)


# Robustness


def test_moved_and_cropped_images() -> None:
    image = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).expand(1, 3, 4, 4)
    right = moved(image, dy=0, dx=1)[0, 0]
    assert right[0].tolist() == [0, 0, 1, 2]
    up = moved(image, dy=-2, dx=0)[0, 0]
    assert up[:, 0].tolist() == [8, 12, 12, 12]
    close = cropped(image, 0.5)
    assert close.shape == image.shape
    assert close.min() >= 5
    assert close.max() <= 10


def test_robustness_is_the_linear_probe_on_changed_images(digits: Splits) -> None:
    protocols = [RobustnessEval(kind="robustness", shift=2, crop=0.75), LinearEval(kind="linear")]
    changed, plain = outcomes(pixel_encoder(), protocols, digits, on="test", seed=0)
    assert changed.detail["unchanged"] == plain.metrics["linear_top1"]
    assert changed.metrics["robust_shift_top1"] < plain.metrics["linear_top1"] - 0.1
    assert changed.metrics["robust_crop_top1"] < plain.metrics["linear_top1"]
    ways = changed.detail["shift"]
    assert np.mean(list(ways.values())) == pytest.approx(changed.metrics["robust_shift_top1"])
    unmoved = RobustnessEval(kind="robustness", shift=1, crop=0.999)
    (same,) = outcomes(pixel_encoder(), [unmoved], digits, on="test", seed=0)
    assert same.metrics["robust_crop_top1"] == plain.metrics["linear_top1"]
