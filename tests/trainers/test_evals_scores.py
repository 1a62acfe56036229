"""What stands behind a score: its interval, its version, its file, features kept on disk."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from stoplab_platform.files import read_json
from stoplab_platform.scorebook import read_scores
from stoplab_platform.specs.data import DataSpec, EvalDataSpec
from stoplab_platform.specs.evals import KnnEval, LinearEval, LowShotEval, versioned
from stoplab_trainers.checkpoint import weights_sha256
from stoplab_trainers.evals import kept as kept_module
from stoplab_trainers.evals.features import Bank
from stoplab_trainers.evals.kept import kept
from stoplab_trainers.evals.outcome import interval
from stoplab_trainers.evals.suite import Splits, load_splits, scores
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import build_model
from stoplab_trainers.scores import Scores
from support_runs import folder, tiny
from support_shards import three_shards


@pytest.fixture(scope="module")
def digits(shared_cache: Path) -> Splits:
    data = DataSpec(train="digits", image_size=16).eval_data()
    assert data is not None
    return load_splits(data, 16, shared_cache)


class Counted(Encoder):
    """Tells how many images it was shown."""

    seen = 0

    def features(self, images: Tensor) -> Tensor:
        Counted.seen += len(images)
        return super().features(images)


def counted(seed: int = 0) -> Counted:
    encoder = build_model(tiny(seed=seed)).encoder
    encoder.__class__ = Counted
    Counted.seen = 0
    return encoder  # type: ignore[return-value]


# Intervals


@pytest.mark.parametrize("values", [
    (np.arange(200) % 3 == 0).astype(float),
    np.random.default_rng(0).normal(size=80),
])  # fmt: skip
def test_the_interval_is_the_percentile_bootstrap(values: np.ndarray) -> None:
    low, high = interval(values)
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    spread = expected.high - expected.low
    assert low == pytest.approx(expected.low, abs=0.06 * spread)
    assert high == pytest.approx(expected.high, abs=0.06 * spread)
    assert interval(values) == (low, high)
    assert interval(np.random.default_rng(2).permutation(values)) == (low, high)


def test_what_is_always_right_has_no_width() -> None:
    assert interval(np.ones(30)) == (1.0, 1.0)


def test_a_row_for_every_metric(digits: Splits) -> None:
    protocols = [KnnEval(kind="knn"), LowShotEval(kind="low_shot", per_class=3, draws=2)]
    encoder = build_model(tiny()).encoder
    rows = scores(encoder, protocols, digits, on="test", seed=0, shown="init")
    assert [(row.protocol, row.version, row.name) for row in rows] == [
        ("knn", 3, "init/knn_top1"),
        ("low_shot", 4, "init/low_shot_top1"),
    ]
    for row in rows:
        assert row.n == 540
        assert row.low < row.value < row.high
        assert row.high - row.low < 0.12
    draws = [one["top1"] for one in rows[1].detail["draws"]]
    assert len(draws) == 2
    assert rows[1].value == pytest.approx(sum(draws) / 2)


def test_a_row_says_what_it_was_asked_for_and_fitted_on(digits: Splits) -> None:
    protocols = [
        KnnEval(kind="knn", k=7),
        LowShotEval(kind="low_shot", fraction=0.1, draws=1, label="ten_percent"),
        LowShotEval(kind="low_shot", per_class=3, draws=2),
        LowShotEval(kind="low_shot", per_class=900, draws=1, penalty="published", label="all"),
    ]
    rows = scores(build_model(tiny()).encoder, protocols, digits, on="test", seed=0, shown="test")
    names = ["knn_top1", "low_shot_top1.ten_percent", "low_shot_top1", "low_shot_top1.all"]
    assert [row.name for row in rows] == [f"test/{name}" for name in names]
    count = len(digits.train)
    shares = [round(0.1 * n) for n in np.bincount(digits.train.labels)]
    assert [row.detail["rows"] for row in rows] == [count, sum(shares), 30, count]
    assert rows[0].detail["options"] == {"label": None, "k": 7}
    told = rows[3].detail["options"]
    assert (told["per_class"], told["penalty"], told["fraction"]) == (900, "published", None)


def test_predictions_of_one_protocol_asked_twice_are_kept_apart(shared_cache: Path) -> None:
    evals = [
        {"kind": "low_shot", "per_class": 2, "draws": 1, "label": "two"},
        {"kind": "low_shot", "per_class": 3, "draws": 2, "label": "three"},
        {"kind": "low_shot", "per_class": 4, "draws": 2},
    ]
    spec = tiny(evals=evals)
    judge = Scores(spec, shared_cache)
    assert judge.protocols == versioned(spec.evals[0])
    final = judge.final(build_model(spec).encoder)
    parts = [".two", ".three.draw0", ".three.draw1", ".draw0", ".draw1"]
    assert set(final.predictions) == {"labels", *(f"test/low_shot_top1{part}" for part in parts)}
    assert len({f"{split}/low_shot_top1{end}" for split in ("val", "test", "init", "pixels")
                for end in ("", ".two", ".three")} & final.metrics.keys()) == 12  # fmt: skip


# Files


def test_a_run_leaves_its_scores(tmp_path: Path, shared_cache: Path) -> None:
    spec = tiny(evals=[{"kind": "knn", "k": [1, 20]}, {"kind": "linear"}])
    judge, run = Scores(spec, shared_cache), folder(tmp_path)
    final = judge.final(build_model(spec).encoder)
    final.leave(run)
    rows = read_scores(run)
    assert {row.name: row.value for row in rows} == final.metrics
    names = [f"{split}/{name}" for split in ("val", "test", "init", "pixels")
             for name in ("knn_top1", "linear_top1")]  # fmt: skip
    assert [row.name for row in rows] == names
    assert judge.protocols == "knn/3 linear/4"
    told = read_json(run.predictions)
    right = np.asarray(told["test/linear_top1"]) == np.asarray(told["labels"])
    (test,) = (row for row in rows if row.name == "test/linear_top1")
    assert (right.mean(), len(right)) == (test.value, test.n)
    assert read_scores(folder(tmp_path, "other")) == []


def test_what_judges_has_a_fingerprint(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def print_of(*evals: dict[str, object]) -> str:
        return Scores(tiny(evals=list(evals)), shared_cache).fingerprint

    first = print_of({"kind": "knn"}, {"kind": "linear"})
    assert print_of({"kind": "knn", "every_epochs": 1}, {"kind": "linear"}) == first
    assert print_of({"kind": "knn", "k": 20}, {"kind": "linear"}) == first
    assert print_of({"kind": "knn", "k": 5}, {"kind": "linear"}) != first
    monkeypatch.setattr(LinearEval, "version", 99)
    assert print_of({"kind": "knn"}, {"kind": "linear"}) != first
    assert Scores(tiny(evals=[{"kind": "linear"}]), shared_cache).protocols == "linear/99"


# Features on disk


def test_the_same_weights_are_not_run_again(tmp_path: Path) -> None:
    path = three_shards(tmp_path)
    splits = load_splits(EvalDataSpec(train=path, test=path), 16, tmp_path / "cache")
    encoder = counted()
    first = Bank(encoder, splits, weights_sha256(encoder.state_dict())).features("test")
    assert Counted.seen == 16
    again = Bank(encoder, splits, weights_sha256(encoder.state_dict()))
    np.testing.assert_array_equal(again.features("test"), first)
    assert Counted.seen == 16
    again.features("train")
    assert Counted.seen == 16 + len(splits.train), "another part is"
    other = counted(seed=1)
    found = Bank(other, splits, weights_sha256(other.state_dict())).features("test")
    assert Counted.seen == 16
    assert not np.array_equal(found, first)
    smaller = load_splits(EvalDataSpec(train=path, test=path), 12, tmp_path / "cache")
    assert smaller.fingerprint != splits.fingerprint
    for file in (tmp_path / "cache" / "features").glob("*.npy"):
        file.write_bytes(file.read_bytes()[:-7])
    encoder = counted()
    whole = Bank(encoder, splits, weights_sha256(encoder.state_dict())).features("test")
    np.testing.assert_array_equal(whole, first)
    assert Counted.seen == 16, "what is not whole is made again"


def test_only_named_encoders_are_kept(tmp_path: Path) -> None:
    path = three_shards(tmp_path)
    splits = load_splits(EvalDataSpec(train=path, test=path), 16, tmp_path / "cache")
    Bank(counted(), splits).features("test")
    assert not (tmp_path / "cache" / "features").exists()


def test_the_oldest_features_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_module, "MOST_BYTES", 10_000)
    rows = np.zeros((30, 30), dtype=np.float32)  # 3,600 bytes and a head of 128
    for number in range(2):
        kept(tmp_path / f"{number}.npy", lambda: rows)
        os.utime(tmp_path / f"{number}.npy", (number, number))
    kept(tmp_path / "0.npy", lambda: pytest.fail("it is there"))  # now 1 is the oldest
    kept(tmp_path / "2.npy", lambda: rows)
    assert {path.name for path in tmp_path.glob("*.npy")} == {"0.npy", "2.npy"}
    large = np.zeros(5000, dtype=np.float32)
    assert kept(tmp_path / "3.npy", lambda: large) is large
    assert not (tmp_path / "3.npy").exists()


def test_of_many_at_once_one_makes_it(tmp_path: Path) -> None:
    made, together = [], threading.Barrier(4)

    def make() -> np.ndarray:
        made.append(1)
        return np.arange(6, dtype=np.float32)

    def ask(_: int) -> np.ndarray:
        together.wait()
        return kept(tmp_path / "a.npy", make)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert len(made) == 1
    assert all(np.array_equal(one, np.arange(6)) for one in found)
    assert torch.from_numpy(found[-1]).sum() == 15


# Splits that share images


def test_splits_that_share_shards_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = three_shards(tmp_path)
    last, copied = tmp_path / "part-000002.tar", tmp_path / "elsewhere.tar"
    copied.write_bytes(last.read_bytes())
    for test, said in (
        (str(copied), ["4 of 4 images of the test split lie in the training split too"]),
        (str(tmp_path / "part-000001.tar"), []),
    ):
        train = parts if said else [str(tmp_path / "part-000000.tar"), str(last)]
        data = EvalDataSpec(train=train, test=test)
        splits = load_splits(data, 16, tmp_path / "cache")
        assert splits.shared == said
        spec = tiny(data__eval=data.plain())
        facts = Scores(spec, tmp_path / "cache").facts()
        assert facts.get("shared") == (said[0] if said else None)
    assert sum("lie in the training split too" in r.message for r in caplog.records) == 1
