"""Label propagation on patch features: DINO's procedure for DAVIS, on still images.

A test patch takes the labels of the training patches that are most like it (dino:
eval_video_segmentation.py@7c446df, paper section 4.2.2). Of a film's own first frame and its
neighbourhood nothing is left: all patches of other images are asked.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stoplab_platform.specs.evals import SegmentationEval
from stoplab_trainers.evals.features import Bank, On
from stoplab_trainers.evals.outcome import Outcome

IGNORED = 255  # a pixel without a class, as in PASCAL VOC
SIMILARITIES = 1 << 26  # held at a time


def segmentation(protocol: SegmentationEval, bank: Bank, on: On, seed: int) -> Outcome:
    """mIoU over the classes that the judged images hold or are told; nothing is drawn or chosen.

    Of both splits the images whose patches the bank knows count; without patches, nothing.
    """
    known, judged = bank.patches("train"), bank.patches(on)
    if known is None or judged is None:
        return Outcome()
    labels, truth = bank.split("train").masks(len(known)), bank.split(on).masks(len(judged))
    seen = np.concatenate([labels.numpy(), truth.numpy()])
    num_classes = 1 + int(seen[seen != IGNORED].max(initial=0))
    shares = patch_shares(labels, math.isqrt(known.shape[1]), num_classes)
    rows, shares = torch.from_numpy(known).flatten(0, 1), shares.flatten(0, 1)
    told_of = shares.sum(dim=1) > 0  # a patch without any class has nothing to tell
    told = propagated(rows[told_of], shares[told_of], torch.from_numpy(judged), protocol)
    counts = overlaps(upsampled(told, truth.shape[-1]), truth, num_classes)
    iou = class_iou(counts.sum(axis=0))
    return Outcome(
        {"segmentation_miou": float(mean_iou(counts.sum(axis=0)))},
        {"segmentation_miou": counts},
        of_sums=mean_iou,
        detail={
            "rows": len(known),
            "iou": {str(c): float(v) for c, v in enumerate(iou) if not np.isnan(v)},
        },
    )


def patch_shares(
    masks: UInt8[Tensor, "n s s"], grid: int, num_classes: int
) -> Float[Tensor, "n patches classes"]:
    """What part of each patch each class covers; ignored pixels are of no class."""
    side = masks.shape[-1] // grid
    cut = masks.reshape(len(masks), grid, side, grid, side).permute(0, 1, 3, 2, 4).flatten(3)
    shares = [(cut == label).float().mean(dim=-1) for label in range(num_classes)]
    return torch.stack(shares, dim=-1).flatten(1, 2)


def propagated(
    known: Float[Tensor, "rows d"],
    shares: Float[Tensor, "rows classes"],
    judged: Float[Tensor, "n patches d"],
    protocol: SegmentationEval,
) -> Float[Tensor, "n patches classes"]:
    """The weighted mean of the nearest rows' shares, for every judged patch."""
    memory, found = functional.normalize(known, dim=-1), []
    rows = functional.normalize(judged.flatten(0, 1), dim=-1)
    for part in torch.split(rows, max(1, SIMILARITIES // len(memory))):
        similarity, nearest = (part @ memory.T).topk(min(protocol.k, len(memory)), dim=1)
        weights = (similarity / protocol.temperature).softmax(dim=1)
        found.append((weights[:, :, None] * shares[nearest]).sum(dim=1))
    return torch.cat(found).reshape(*judged.shape[:2], -1)


def upsampled(told: Float[Tensor, "n patches classes"], size: int) -> UInt8[Tensor, "n size size"]:
    """The class with the largest share at every pixel, shares read between patches' centres."""
    grid = math.isqrt(told.shape[1])
    shares = told.reshape(len(told), grid, grid, -1).permute(0, 3, 1, 2)
    found = [
        functional.interpolate(one[None], size=(size, size), mode="bilinear").argmax(dim=1)
        for one in shares
    ]
    return torch.cat(found).to(torch.uint8)


def overlaps(
    told: UInt8[Tensor, "n s s"], truth: UInt8[Tensor, "n s s"], num_classes: int
) -> NDArray[np.float64]:
    """Pixels of each image's intersection and union with each class: [n, classes, 2]."""
    counted = truth != IGNORED
    found = []
    for label in range(num_classes):
        ours, theirs = (told == label) & counted, truth == label
        both = [(ours & theirs).sum(dim=(1, 2)), (ours | theirs).sum(dim=(1, 2))]
        found.append(torch.stack(both, dim=-1))
    return np.asarray(torch.stack(found, dim=1).numpy(), dtype=np.float64)


def class_iou(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of each class, NaN where nobody sees it: [..., classes, 2]."""
    union = sums[..., 1]
    return np.where(union > 0, sums[..., 0] / np.maximum(union, 1), np.nan)


def mean_iou(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """mIoU of each resample: [resamples, classes, 2] to [resamples]; 0 where no class is."""
    iou = class_iou(sums)
    seen = ~np.isnan(iou)
    return np.asarray(np.where(seen, iou, 0).sum(axis=-1) / np.maximum(seen.sum(axis=-1), 1))
