"""The fitted linear probe on test images that are moved by some pixels, or cropped more tightly.

Ours: what of the features depends on where in the image things are.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

from stoplab_platform.specs.evals import RobustnessEval
from stoplab_trainers.evals.features import Bank, On
from stoplab_trainers.evals.linear import whole_probe
from stoplab_trainers.evals.outcome import Outcome, accuracy, right

DIRECTIONS = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


def robustness(protocol: RobustnessEval, bank: Bank, on: On, seed: int) -> Outcome:
    """Mean accuracy over the four directions, and accuracy on the crop. Nothing is drawn."""
    probe, labels, by = whole_probe(bank), bank.labels(on), protocol.shift
    told = {
        name: probe.predict(bank.viewed(on, f"{name} {by}", partial(moved, dy=dy * by, dx=dx * by)))
        for name, (dy, dx) in DIRECTIONS.items()
    }
    close = bank.viewed(on, f"crop {protocol.crop}", partial(cropped, share=protocol.crop))
    cut = probe.predict(close)
    per_image = {
        "robust_shift_top1": np.mean([right(one, labels) for one in told.values()], axis=0),
        "robust_crop_top1": right(cut, labels),
    }
    return Outcome(
        {name: float(row.mean()) for name, row in per_image.items()},
        per_image,
        {"robust_crop_top1": cut, **{f"robust_shift_top1.{way}": row for way, row in told.items()}},
        {"C": probe.strength},
        {
            "unchanged": accuracy(probe.predict(bank.features(on)), labels),
            "shift": {way: accuracy(row, labels) for way, row in told.items()},
        },
    )


def moved(images: UInt8[Tensor, "b 3 s s"], dy: int, dx: int) -> UInt8[Tensor, "b 3 s s"]:
    """Images moved down by ``dy`` and right by ``dx`` pixels; the border is repeated."""
    size = images.shape[-1]
    reach = (max(dx, 0), max(-dx, 0), max(dy, 0), max(-dy, 0))
    wide = functional.pad(images.float(), reach, mode="replicate").to(images.dtype)
    top, left = max(-dy, 0), max(-dx, 0)
    return wide[:, :, top : top + size, left : left + size]


def cropped(images: UInt8[Tensor, "b 3 s s"], share: float) -> UInt8[Tensor, "b 3 s s"]:
    """The central square, its side a share of the image's, resized to the whole."""
    size = images.shape[-1]
    side = max(1, round(share * size))
    start = (size - side) // 2
    centre = images[:, :, start : start + side, start : start + side]
    return functional.interpolate(centre, size=(size, size), mode="bilinear", antialias=True)
