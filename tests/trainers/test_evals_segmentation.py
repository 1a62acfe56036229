"""Label propagation on digits, whose foreground is what is bright."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from stoplab_platform.errors import DataError
from stoplab_platform.specs.data import EvalDataSpec
from stoplab_platform.specs.evals import SegmentationEval
from stoplab_trainers.data.decode import decode_mask, whole_mask
from stoplab_trainers.data.index import read_index
from stoplab_trainers.data.pack import write_shard
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.evals.features import Bank
from stoplab_trainers.evals.outcome import interval
from stoplab_trainers.evals.segmentation import (
    IGNORED,
    mean_iou,
    overlaps,
    patch_shares,
    propagated,
    segmentation,
    upsampled,
)
from stoplab_trainers.evals.suite import Splits, load_splits, outcomes, pixel_encoder, scores
from stoplab_trainers.model.jepa import build_model
from stoplab_trainers.scores import Scores
from support_runs import tiny
from support_shards import encoded, members

SEGMENTATION = SegmentationEval(kind="segmentation")


class Raw(nn.Module):
    """Patches of the image as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.unfold(images, 4, stride=4).transpose(1, 2) * self.scale + 0.5

    def features(self, images: Tensor) -> Tensor:
        return self(images).mean(dim=1)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    folder = tmp_path_factory.mktemp("masked")
    images = load_digits().images.repeat(2, axis=1).repeat(2, axis=2)

    def part(name: str, numbers: range) -> str:
        samples = [
            (f"d{n:04d}", {
                "cls": b"0",
                "seg.png": encoded((images[n] > 7).astype(np.uint8)),
                "png": encoded((images[n] * 15).astype(np.uint8)),
            }) for n in numbers
        ]  # fmt: skip
        write_shard(folder / f"{name}.tar", samples)
        return str(folder / f"{name}.tar")

    data = EvalDataSpec(
        train=part("train", range(200)), val=part("val", range(200, 230)),
        test=part("test", range(230, 300)),
    )  # fmt: skip
    return load_splits(data, 16, folder / "cache")


def test_masks_are_no_images_and_are_shown_as_images_are(masked: Splits) -> None:
    images = next(masked.test.batches(70))
    masks = masked.test.masks(70)
    assert masks.shape == (70, 16, 16)
    assert torch.equal(masks, (images[:, 0] > 7 * 15).to(torch.uint8))
    wide = np.arange(24, dtype=np.uint8).reshape(4, 6)
    assert torch.equal(whole_mask(wide, 4), torch.from_numpy(wide[:, 1:5].copy()))
    with pytest.raises(DataError, match="this one is RGB"):
        decode_mask(encoded(np.zeros((4, 4, 3), np.uint8)))


def test_the_fingerprint_tells_masks(tmp_path: Path) -> None:
    plain = [("s0", members(0))]
    for name, value in (("a", 0), ("b", 1)):
        mask = {"seg.png": encoded(np.full((24, 32), value, np.uint8))}
        write_shard(tmp_path / f"{name}.tar", [("s0", members(0) | mask)])
    write_shard(tmp_path / "c.tar", plain)
    found = {name: read_index(tmp_path / f"{name}.tar") for name in "abc"}
    assert len({index.digest for index in found.values()}) == 3
    assert found["c"].mask_sizes.tolist() == [-1]
    shards = ShardSet.open(str(tmp_path / "c.tar"), tmp_path / "cache")
    with pytest.raises(DataError, match=r"'s0' in .*c\.tar has no mask"):
        shards.read_mask(0)


def test_a_patch_takes_the_labels_of_those_like_it() -> None:
    random = torch.Generator().manual_seed(0)
    known, judged = (torch.randn(n, 6, generator=random) for n in (12, 8))
    shares = torch.rand(12, 3, generator=random)
    found = propagated(known, shares, judged.reshape(2, 4, 6), SEGMENTATION).reshape(8, 3)
    for row, told in zip(judged, found, strict=True):
        cosine = nn.functional.cosine_similarity(known, row[None])
        order = cosine.argsort(descending=True)[:5]
        weights = (cosine[order] / 0.1).exp()
        torch.testing.assert_close(told, (weights[:, None] * shares[order]).sum(0) / weights.sum())


def test_shares_and_overlaps() -> None:
    masks = torch.zeros(1, 4, 4, dtype=torch.uint8)
    masks[0, :2, :1], masks[0, 3, 3] = 1, IGNORED
    shares = patch_shares(masks, 2, 2)
    assert shares[0, :, 1].tolist() == [0.5, 0, 0, 0]
    assert shares[0, 3, 0] == 0.75
    told = torch.ones(1, 4, 4, dtype=torch.uint8)
    counts = overlaps(told, masks, 3)
    assert counts[0].tolist() == [[0, 13], [2, 15], [0, 0]]
    assert mean_iou(counts)[0] == pytest.approx((0 + 2 / 15) / 2), "of classes that are there"


def test_what_finds_itself_is_as_good_as_patches_can_be(masked: Splits) -> None:
    own = Splits(masked.test, masked.val, masked.test, "own", (), masked.cache)
    one = SegmentationEval(kind="segmentation", k=1)
    (found,) = outcomes(Raw(), [one], own, on="test", seed=0)
    truth = masked.test.masks(70)
    limit = upsampled(patch_shares(truth, 4, 2), 16)
    expected = mean_iou(overlaps(limit, truth, 2).sum(0, keepdims=True))[0]
    assert found.metrics["segmentation_miou"] == pytest.approx(expected, abs=0.01)
    assert expected > 0.6


def test_digits_are_told_from_their_ground(masked: Splits) -> None:
    (row,) = scores(Raw(), [SEGMENTATION], masked, on="test", seed=0, shown="test")
    assert (row.protocol, row.metric, row.n) == ("segmentation", "segmentation_miou", 70)
    assert row.low < row.value < row.high
    truth = masked.test.masks(70)
    blank = overlaps(torch.zeros_like(truth), truth, 2)
    assert row.value > mean_iou(blank.sum(0, keepdims=True))[0] + 0.1
    assert set(row.detail["iou"]) == {"0", "1"}
    low, high = interval(blank, mean_iou)
    assert low < mean_iou(blank.sum(0, keepdims=True))[0] < high
    encoder = build_model(tiny()).encoder
    (trained,) = outcomes(encoder, [SEGMENTATION], masked, on="val", seed=0)
    assert 0 < trained.metrics["segmentation_miou"] < 1
    (none,) = outcomes(pixel_encoder(), [SEGMENTATION], masked, on="test", seed=0)
    assert none.metrics == {}


def written(folder: Path, masks: list[np.ndarray | None]) -> str:
    samples = [
        (f"d{n:04d}", {
            "cls": b"0", "png": encoded(np.full((16, 16), n, np.uint8)),
            **({} if mask is None else {"seg.png": encoded(mask.astype(np.uint8))}),
        }) for n, mask in enumerate(masks)
    ]  # fmt: skip
    write_shard(folder / f"{len(list(folder.iterdir()))}.tar", samples)
    return str(max(folder.glob("*.tar")))


def test_patches_without_a_class_do_not_vote_for_the_first_one() -> None:
    one = SegmentationEval(kind="segmentation", k=1)
    masks = torch.full((2, 4, 4), IGNORED, dtype=torch.uint8)
    masks[1] = 1
    images = torch.tensor([[10.0, 1], [10, -9]])
    own = Fixed(images.numpy(), masks)
    found = segmentation(one, own, "test", 0)
    assert found.metrics["segmentation_miou"] == 1.0, "both images are class 1"


class Fixed(Bank):
    """A bank of two images of one patch; the judged one is like the one without a class."""

    def __init__(self, rows: np.ndarray, masks: Tensor) -> None:
        self._rows, self._masks = rows, masks

    def patches(self, part: str, block: int | None = None) -> np.ndarray:
        return self._rows[:, None] if part == "train" else self._rows[:1, None]

    def split(self, part: str) -> Fixed:  # type: ignore[override]
        return self if part == "train" else Fixed(self._rows, self._masks[1:])

    def masks(self, count: int) -> Tensor:
        return self._masks[:count]


def test_masks_are_looked_at_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    whole = np.zeros((16, 16))
    good, late, blank = (
        written(tmp_path / "s", masks)
        for masks in ([whole] * 3, [whole, None, whole], [whole + IGNORED] * 3)
    )
    for test, wrong in (
        (late, "has no mask"),
        (blank, "test split's first 3 images hold no class"),
    ):
        data = {"train": good, "val": good, "test": test}
        spec = tiny(evals=[{"kind": "segmentation"}], data__eval=data)
        with pytest.raises(DataError, match=wrong):
            Scores(spec, tmp_path / "cache")
    empty = np.zeros((3, 2, 2))
    empty[1, 1] = (3, 4)
    assert mean_iou(empty).tolist() == [0, 0.75, 0]


def test_data_without_masks_are_refused_before_anything_runs(shared_cache: Path) -> None:
    with pytest.raises(DataError, match=r"has no mask \(a `\.seg\.png` member\)"):
        Scores(tiny(evals=[{"kind": "segmentation"}]), shared_cache)
