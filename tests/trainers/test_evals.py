"""Evaluations of a frozen encoder, against scikit-learn and plain loops."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from torch import Tensor, nn

from stoplab_platform.errors import DataError
from stoplab_platform.specs.data import DataSpec, EvalDataSpec
from stoplab_platform.specs.evals import KnnEval, LinearEval, LocationEval, LowShotEval, Protocol
from stoplab_trainers.data.build import main as build
from stoplab_trainers.data.decode import decode, whole
from stoplab_trainers.data.loader import normalise
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.evals import splits as splits_module
from stoplab_trainers.evals.features import Bank
from stoplab_trainers.evals.knn import TEMPERATURE, knn_predict
from stoplab_trainers.evals.linear import STRENGTHS
from stoplab_trainers.evals.logistic import fit_path
from stoplab_trainers.evals.low_shot import draw_rows
from stoplab_trainers.evals.splits import hash_split
from stoplab_trainers.evals.suite import Splits, evaluate, load_splits, outcomes, pixel_encoder
from support_shards import encoded, picture, shard, three_shards

KNN, LINEAR = KnnEval(kind="knn"), LinearEval(kind="linear")
LOW_SHOT = LowShotEval(kind="low_shot", per_class=5, draws=2)
LOCATION = LocationEval(kind="location")
ALL: tuple[Protocol, ...] = (KNN, LINEAR, LOW_SHOT, LOCATION)


class Patches(nn.Module):
    """A random patch embedding with positions: enough of an encoder to be judged."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Conv2d(3, width, 4, 4, bias=False)
        self.embed.weight.data = torch.randn(width, 3, 4, 4, generator=generator) * 0.2
        self.register_buffer("positions", torch.randn(16, width, generator=generator))
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training or torch.is_grad_enabled())
        patches = self.embed(images).flatten(2).transpose(1, 2)
        return torch.tanh(patches + self.positions)

    def features(self, images: Tensor) -> Tensor:
        return self(images).mean(dim=1)


class Given(nn.Module):
    """Features that a test makes up, told by the image's first pixel."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def features(self, images: Tensor) -> Tensor:
        scale = images[:, 0, 0, 0] * 0.229 * 255 + 0.485 * 255
        return self.table[scale.round().long()]


@pytest.fixture(scope="module")
def digits(shared_cache: Path) -> Splits:
    data = DataSpec(train="digits", image_size=16).eval_data()
    assert data is not None
    return load_splits(data, 16, shared_cache)


def judged(encoder: object, splits: Splits, protocols: Sequence[Protocol], on: str = "test"):  # type: ignore[no-untyped-def]
    return evaluate(encoder, protocols, splits, on=on, seed=0)  # type: ignore[arg-type]


# Splits


def test_the_digits_validation_part_is_a_fixed_part_of_the_training_set(
    digits: Splits, shared_cache: Path
) -> None:
    assert [len(part) for part in (digits.train, digits.val, digits.test)] == [1006, 251, 540]
    shards = ShardSet.open("digits", shared_cache)
    held_out = hash_split(shards.keys, 0.2)
    assert shards.labels is not None
    np.testing.assert_array_equal(digits.val.labels, shards.labels[held_out])
    np.testing.assert_array_equal(digits.train.labels, shards.labels[~held_out])
    first = next(digits.val.batches(10))
    ids = np.flatnonzero(held_out)[:10]
    assert torch.equal(first, torch.stack([whole(decode(shards.read(int(i))), 16) for i in ids]))


def test_the_hash_split_follows_the_keys_alone() -> None:
    keys = [f"key-{n}" for n in range(200)]
    held_out = hash_split(keys, 0.3)
    assert held_out.sum() == 60
    backwards = hash_split(keys[::-1], 0.3)
    np.testing.assert_array_equal(held_out, backwards[::-1])
    fewer = hash_split(keys, 0.1)
    assert (held_out & fewer).sum() == 20, "a smaller share is a part of a larger one"
    assert hash_split(["a", "b"], 0.001).sum() == 1
    assert hash_split(["a", "b"], 0.999).sum() == 1
    with pytest.raises(DataError, match="cannot be split"):
        hash_split(["a"], 0.5)


def test_a_named_validation_split_is_used_as_it_is(tmp_path: Path) -> None:
    data = EvalDataSpec(
        train=three_shards(tmp_path),
        val=str(shard(tmp_path / "val.tar", range(50, 53))),
        test=str(shard(tmp_path / "test.tar", range(60, 64))),
    )
    found = load_splits(data, 12, tmp_path / "cache")
    assert [len(part) for part in (found.train, found.val, found.test)] == [16, 3, 4]
    assert found.val.labels.tolist() == [2, 0, 1]
    assert load_splits(data, 12, tmp_path / "cache") is found, "remembered"


def test_a_split_without_labels_is_refused_by_name(tmp_path: Path) -> None:
    path = str(shard(tmp_path / "a.tar", range(4), labels=False))
    with pytest.raises(DataError, match=r"'s0000' in .*a\.tar has none"):
        load_splits(EvalDataSpec(train=path, test=path), 12, tmp_path / "cache")


def test_an_index_of_two_classes_is_refused(tmp_path: Path) -> None:
    for split, classes in {"train": "abc", "fewer": "ab", "test": "ac"}.items():
        for n, name in enumerate(classes):
            (folder := tmp_path / split / name).mkdir(parents=True)
            (folder / f"{n}.png").write_bytes(encoded(picture(n)))
        assert build([str(tmp_path / split), f"--out={tmp_path}", f"--name={split}"]) == 0
    train, fewer, test = (str(tmp_path / f"{one}-*.tar") for one in ("train", "fewer", "test"))
    load_splits(EvalDataSpec(train=train, val=fewer, test=fewer), 12, tmp_path / "cache")
    for val in (None, fewer):
        with pytest.raises(DataError, match=r"class 1 is 'b' in the training .* 'c' in the test"):
            load_splits(EvalDataSpec(train=train, val=val, test=test), 12, tmp_path / "cache")


def test_a_split_too_large_for_memory_shows_the_same_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = three_shards(tmp_path)
    kept = load_splits(EvalDataSpec(train=path, test=path), 12, tmp_path / "cache").test
    expected = torch.cat(list(kept.batches(5)))
    monkeypatch.setattr(splits_module, "KEEP_BYTES", 0)
    read = load_splits(EvalDataSpec(train=path, test=path), 12, tmp_path / "other").test
    for _ in range(2):
        found = list(read.batches(5))
        assert [len(batch) for batch in found] == [5, 5, 5, 1]
        assert torch.equal(torch.cat(found), expected)


# Features


@pytest.mark.invariant(28)
def test_features_are_made_once_at_rest_and_the_encoders_mode_comes_back(digits: Splits) -> None:
    encoder = Patches().train()
    bank = Bank(encoder, digits)
    features = bank.features("val")
    calls = len(encoder.modes)
    assert bank.features("val") is features
    assert len(encoder.modes) == calls
    assert not any(encoder.modes), "in evaluation mode, without gradients"
    assert encoder.training
    images = next(digits.val.batches(7))
    with torch.no_grad():
        expected = encoder.features(normalise(images))
    torch.testing.assert_close(torch.from_numpy(features[:7]), expected)


# Protocols


def test_knn_is_the_weighted_vote_of_the_nearest() -> None:
    random = np.random.default_rng(0)
    train, judged_rows = (random.normal(size=(n, 8)).astype(np.float32) for n in (90, 40))
    labels = random.integers(0, 5, 90)
    for k in (1, 7, 200):
        expected = []
        for row in judged_rows:
            similarity = train @ row / np.linalg.norm(train, axis=1) / np.linalg.norm(row)
            votes = np.zeros(5)
            for i in np.argsort(-similarity)[:k]:
                votes[labels[i]] += np.exp(similarity[i] / TEMPERATURE)
            expected.append(votes.argmax())
        found = knn_predict(train, labels, judged_rows, [k])[k]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_logistic_regression_is_scikit_learns(strength: float) -> None:
    random = np.random.default_rng(1)
    labels = random.integers(0, 4, 400)
    mixing = random.normal(size=(20, 20)) * np.geomspace(1, 0.02, 20)
    rows = (random.normal(size=(400, 20)) + 0.8 * np.eye(20)[labels]) @ mixing
    rows = (rows - rows.mean(0)) / rows.std(0)
    expected = LogisticRegression(C=strength, tol=1e-10, max_iter=10_000).fit(rows, labels)
    lesser = [s for s in STRENGTHS if s <= strength]
    found = fit_path(torch.from_numpy(rows), torch.from_numpy(labels), lesser)[-1]
    weights = found.weights.numpy()
    np.testing.assert_allclose(weights, expected.coef_, atol=2e-2 * np.abs(expected.coef_).max())
    shares = torch.softmax(torch.from_numpy(rows) @ found.weights.T + found.intercept.T, dim=1)
    np.testing.assert_allclose(shares.numpy(), expected.predict_proba(rows), atol=5e-3)


def test_logistic_regression_has_an_answer_for_any_features() -> None:
    labels = torch.arange(30) % 3
    collapsed = fit_path(torch.zeros(30, 6), labels, STRENGTHS)
    assert all(torch.isfinite(fit.weights).all() for fit in collapsed)
    doubled = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)).repeat(1, 20)
    wide = fit_path(doubled, labels, [1.0])[0]
    assert wide.weights.shape == (3, 80)
    torch.testing.assert_close(wide.weights[:, :4], wide.weights[:, 76:], atol=1e-4, rtol=1e-3)


def test_a_weak_penalty_on_many_features_is_followed_to_its_optimum() -> None:
    """More than two hundred iterations: a hundred classes, ten rows each, hardly held."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(100), 10)
    rows = random.normal(size=(1000, 128)) + random.normal(size=(100, 128))[labels]
    fit = fit_path(
        torch.from_numpy(rows).float(), torch.from_numpy(labels), [400.0], intercept=False
    )[0]
    assert fit.slope < 3e-5


def test_the_linear_probe_is_fitted_on_train_and_chosen_on_val(digits: Splits) -> None:
    """Against scikit-learn from end to end."""
    encoder = Patches()
    bank = Bank(encoder, digits)
    train, val, test = (bank.features(part) for part in ("train", "val", "test"))
    mean, std = train.mean(0), train.std(0)
    fits = [
        LogisticRegression(C=strength, max_iter=3000).fit((train - mean) / std, digits.train.labels)
        for strength in STRENGTHS
    ]
    best = max(fits, key=lambda fit: fit.score((val - mean) / std, digits.val.labels))
    expected = best.score((test - mean) / std, digits.test.labels)
    (found,) = outcomes(encoder, [LINEAR], digits, on="test", seed=0)
    assert found.metrics["linear_top1"] == pytest.approx(expected, abs=0.01)
    assert found.chosen == {"C": best.C}
    right = (found.predictions["linear_top1"] == digits.test.labels).mean()
    assert found.metrics["linear_top1"] == pytest.approx(right)


@pytest.mark.invariant(28)
def test_standardisation_knows_the_training_split_alone(tmp_path: Path) -> None:
    """Test features moved and stretched as a whole must be judged as they are, not undone."""
    paths = [str(shard(tmp_path / f"{part}.tar", range(12))) for part in ("train", "val", "test")]
    data = EvalDataSpec(train=paths[0], val=paths[1], test=paths[2])
    found = load_splits(data, 12, tmp_path / "cache")
    table = {"train": 0, "val": 20, "test": 40}
    for part, first in table.items():  # the first pixel tells split and row apart
        split = getattr(found, part)
        images = torch.cat(list(split.batches(12)))
        images[:, 0, 0, 0] = torch.arange(first, first + 12)
        split._kept = images
    features = torch.zeros(256, 3)
    own_class = torch.eye(3)[torch.arange(12) % 3]
    features[0:12] = features[20:32] = own_class
    features[40:52] = own_class * 100 + torch.tensor([1000.0, 0, 0])
    assert judged(Given(features), found, [LINEAR]) == {"linear_top1": pytest.approx(1 / 3)}
    assert judged(Given(features), found, [LINEAR], on="val") == {"linear_top1": 1.0}


def test_nothing_looks_at_the_test_labels(digits: Splits) -> None:
    expected = outcomes(Patches(), ALL, digits, on="test", seed=0)
    truth = digits.test.labels
    try:
        digits.test.labels = np.roll(truth, 7)
        found = outcomes(Patches(), ALL, digits, on="test", seed=0)
    finally:
        digits.test.labels = truth
    for ours, theirs in zip(found[:3], expected[:3], strict=True):
        assert ours.predictions.keys() == theirs.predictions.keys()
        for name, classes in ours.predictions.items():
            np.testing.assert_array_equal(classes, theirs.predictions[name])
        assert ours.chosen == theirs.chosen
        assert ours.metrics != theirs.metrics


def test_few_labels_are_drawn_by_class_and_by_seed() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 3])
    by_count = draw_rows(labels, LowShotEval(kind="low_shot", per_class=5), 0, 0)
    assert np.bincount(labels[by_count]).tolist() == [5, 5, 3]
    by_share = draw_rows(labels, LowShotEval(kind="low_shot", fraction=0.1), 0, 0)
    assert np.bincount(labels[by_share]).tolist() == [5, 3, 1]
    draws = {tuple(draw_rows(labels, LOW_SHOT, seed, n)) for seed in (0, 1) for n in (0, 1)}
    assert len(draws) == 4
    np.testing.assert_array_equal(
        draw_rows(labels, LOW_SHOT, 1, 1), draw_rows(labels, LOW_SHOT, 1, 1)
    )


def test_low_shot_is_the_linear_probe_on_the_drawn_rows(digits: Splits) -> None:
    encoder = Patches()
    everything = LowShotEval(kind="low_shot", fraction=1.0, draws=1)
    full = judged(encoder, digits, [everything, LINEAR])
    assert full["low_shot_top1"] == pytest.approx(full["linear_top1"])
    few = judged(encoder, digits, [LOW_SHOT])["low_shot_top1"]
    assert 0.2 < few < full["linear_top1"] - 0.1
    single = [
        judged(encoder, digits, [LowShotEval(kind="low_shot", per_class=5, draws=n)])
        for n in (1, 2)
    ]
    assert single[1]["low_shot_top1"] == few
    assert single[0]["low_shot_top1"] != few


def test_location_is_a_ridge_regression_of_row_and_column(digits: Splits) -> None:
    encoder = Patches()
    found = judged(encoder, digits, [LOCATION])["location_r2"]
    parts = {}
    for part in ("train", "test"):
        images = torch.cat(list(getattr(digits, part).batches(256)))[:256]
        with torch.no_grad():
            parts[part] = encoder(normalise(images)).flatten(0, 1).numpy()
    places = np.array([(i // 4, i % 4) for i in range(16)] * 256, dtype=float)
    mean, std = parts["train"].mean(0), parts["train"].std(0)
    ridge = Ridge(alpha=1.0).fit((parts["train"] - mean) / std, places)
    expected = r2_score(places, ridge.predict((parts["test"] - mean) / std))
    assert found == pytest.approx(expected, abs=0.02)
    assert found > 0.9, "the positions are in these features"
    encoder.positions.zero_()  # type: ignore[operator]
    assert judged(encoder, digits, [LOCATION])["location_r2"] < found - 0.2


def test_raw_pixels_are_judged_by_the_same_protocols_but_for_location(digits: Splits) -> None:
    found = judged(pixel_encoder(), digits, ALL)
    assert set(found) == {"knn_top1", "linear_top1", "low_shot_top1"}
    assert found["knn_top1"] > 0.95
    assert found["linear_top1"] > 0.95


def test_pixels_are_judged_once_for_a_data_set_and_a_question(tmp_path: Path) -> None:
    path = three_shards(tmp_path)
    data, cache = EvalDataSpec(train=path, test=path), tmp_path / "cache"
    found = load_splits(data, 16, cache)
    first = judged(pixel_encoder(), found, [KNN])
    (kept,) = (cache / "scores").glob("*.json")
    kept.write_text(json.dumps([{**json.loads(kept.read_text())[0], "value": 0.125}]))
    assert judged(pixel_encoder(), found, [KNN]) == {"knn_top1": 0.125}
    assert judged(pixel_encoder(), found, [KNN], on="val") != {"knn_top1": 0.125}
    assert judged(pixel_encoder(), found, [KnnEval(kind="knn", k=1)]) != {"knn_top1": 0.125}
    assert judged(pixel_encoder(), load_splits(data, 8, cache), [KNN]) != {"knn_top1": 0.125}
    assert judged(Patches(), found, [KNN]) != {"knn_top1": 0.125}
    assert judged(Bank(pixel_encoder(), found), found, [KNN]) == {"knn_top1": 0.125}
    told = (evaluate(pixel_encoder(), [KNN], found, on="test", seed=seed) for seed in (1, 2))
    assert list(told) == [{"knn_top1": 0.125}] * 2
    before = set((cache / "scores").glob("*.json"))
    for seed in (1, 2):
        evaluate(pixel_encoder(), [LOW_SHOT], found, on="test", seed=seed)
    assert len(set((cache / "scores").glob("*.json")) - before) == 2, "it draws by the seed"
    kept.unlink()
    assert judged(pixel_encoder(), found, [KNN]) == first


def test_a_bank_serves_both_splits_with_one_look_at_the_images(digits: Splits) -> None:
    encoder = Patches()
    bank = Bank(encoder, digits)
    protocols = [KNN, LINEAR, LOW_SHOT]
    found = {on: judged(bank, digits, protocols, on) for on in ("val", "test")}
    assert len(encoder.modes) == sum(-(-n // 256) for n in (1006, 251, 540))
    assert found == {on: judged(encoder, digits, protocols, on) for on in ("val", "test")}


@pytest.mark.parametrize("on", ["val", "test"])
def test_an_evaluation_names_its_metrics_and_repeats_itself(digits: Splits, on: str) -> None:
    first = judged(Patches(), digits, ALL, on=on)
    assert set(first) == {name for protocol in ALL for name in protocol.metrics()}
    assert judged(Patches(), digits, ALL, on=on) == first
    assert all(isinstance(value, float) for value in first.values())


def test_large_images_are_averaged_down_before_pixels_are_judged() -> None:
    images = torch.arange(2 * 3 * 64 * 64, dtype=torch.float32).reshape(2, 3, 64, 64)
    features = pixel_encoder().features(images)
    assert features.shape == (2, 3 * 32 * 32)
    assert features[0, 0] == images[0, 0, :2, :2].mean()
    small = images[:, :, :16, :16]
    assert torch.equal(pixel_encoder().features(small), small.flatten(1))
