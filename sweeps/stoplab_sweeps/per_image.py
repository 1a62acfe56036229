"""Image by image: which test images one arm alone gets right, and what a finite test set adds.

A block's difference moves for two reasons: another seed trains other weights, and another test
set would hold other images. The seeds of a comparison show the first. The images on which the
two arms of a block disagree show the second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.contingency_tables import mcnemar

from stoplab_platform.files import read_json
from stoplab_platform.ledger import Cell, CellState
from stoplab_platform.paths import JobFolder

Right = NDArray[np.bool_]
"""Whether each test image was told right."""
Told = Mapping[int, Mapping[str, Right]]
"""Block (its seed) to arm to its images."""


def read_right(folder: JobFolder, cells: Iterable[Cell], metric: str) -> Told:
    """What the runs of a comparison told right, where they kept it for this metric.

    Blocks whose arms were held against unlike labels are left out.
    """
    found: dict[int, dict[str, Right]] = {}
    labels: dict[int, set[tuple[int, ...]]] = {}
    for cell in cells:
        told = read_json(folder.run(cell.id).predictions) or {}
        if cell.state is CellState.SUCCEEDED and metric in told:
            right: Right = np.asarray(told[metric]) == np.asarray(told["labels"])
            found.setdefault(cell.seed, {})[str(cell.arm)] = right
            labels.setdefault(cell.seed, set()).add(tuple(told["labels"]))
    return {seed: row for seed, row in found.items() if len(labels[seed]) == 1}


def per_image(told: Told, arms: Sequence[str]) -> dict[str, Any] | None:
    """McNemar's test a block, and seed noise beside test-set noise; the first arm is the reference.

    JSON types; None where no block holds both arms on the same images. The top level speaks of
    the first other arm, `noise` of each.
    """
    reference, *others = arms
    pairs = {
        arm: {
            seed: row[arm].astype(float) - row[reference]
            for seed, row in told.items()
            if arm in row and reference in row and len(row[arm]) == len(row[reference])
        }
        for arm in others
    }
    if not any(pairs.values()):
        return None
    noise = {arm: _noise(list(blocks.values())) for arm, blocks in pairs.items()}
    return {
        "arms": {
            arm: [_block(seed, gaps) for seed, gaps in blocks.items()]
            for arm, blocks in pairs.items()
        },
        "noise": noise,
        **noise[others[0]],
        "note": _note(noise[others[0]], len(next(iter(pairs[others[0]].values()), ()))),
    }


def _block(seed: int, gaps: NDArray[np.float64]) -> dict[str, Any]:
    """Counts of the images that one arm alone gets right, and the exact test of their balance."""
    reference, other = int((gaps < 0).sum()), int((gaps > 0).sum())
    # The agreeing images do not enter.
    p = float(mcnemar([[0, reference], [other, 0]], exact=True).pvalue)
    return {
        "seed": seed,
        "only_reference": reference,
        "only_other": other,
        "p_mcnemar": p,
        "n_images": len(gaps),
    }


def _noise(blocks: Sequence[NDArray[np.float64]]) -> dict[str, float | None]:
    """Standard deviations of one block's difference: over test sets, and over seeds.

    `test_set_se` is the root mean square over the blocks, `mean_test_set_se` that of the mean
    difference: what the seeds have in common on an image is not averaged away.
    """
    if not blocks:
        return {"test_set_se": None, "seed_sd": None, "mean_test_set_se": None}
    variances = [float(gaps.var(ddof=1)) / len(gaps) for gaps in blocks if len(gaps) > 1]
    same = len({len(gaps) for gaps in blocks}) == 1
    mean = np.mean(blocks, axis=0) if same else np.empty(0)
    return {
        "test_set_se": math.sqrt(fmean(variances)) if variances else None,
        "seed_sd": stdev(float(gaps.mean()) for gaps in blocks) if len(blocks) > 1 else None,
        "mean_test_set_se": float(mean.std(ddof=1)) / math.sqrt(len(mean)) if len(mean) > 1
        else None,
    }  # fmt: skip


def _note(noise: Mapping[str, float | None], images: int) -> str | None:
    seeds, tests, mean = noise["seed_sd"], noise["test_set_se"], noise["mean_test_set_se"]
    if seeds is None or tests is None:
        return None
    rest = "" if mean is None else f", and the mean difference by {mean:.4f}"
    return (
        f"from seed to seed a block's difference moves by {seeds:.4f}; other {images} test images "
        f"would move it by {tests:.4f}{rest} (standard errors): the interval over seeds speaks of "
        "these test images"
    )
