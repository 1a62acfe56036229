"""Location probe: how well row and column of a patch can be read from its features.

Ours. Positions are added to the encoder's input, so an untrained encoder scores high too: read it
beside `init/location_r2`, and at later blocks.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from stoplab_platform.specs.evals import LocationEval
from stoplab_trainers.evals.features import Bank, On
from stoplab_trainers.evals.kept import Features
from stoplab_trainers.evals.outcome import Outcome, PerImage

STRENGTHS = (1.0, 1e2, 1e4)  # of the ridge


def location(protocol: LocationEval, bank: Bank, on: On, seed: int) -> Outcome:
    """R2 of a ridge regression, mean of row and column; nothing where there are no patches.

    Fitted on images of the training split, its penalty chosen on the validation split.
    """
    train, val, judged = (bank.patches(part, protocol.block) for part in ("train", "val", on))
    if train is None or val is None or judged is None:
        return Outcome()
    scaler = StandardScaler().fit(_rows(train))
    fits = [
        Ridge(alpha=strength).fit(scaler.transform(_rows(train)), _places(train))
        for strength in STRENGTHS
    ]
    best = max(fits, key=lambda fit: float(r2_per_image(fit, scaler, val).mean()))
    found = r2_per_image(best, scaler, judged)
    return Outcome(
        {"location_r2": float(found.mean())},
        {"location_r2": found},
        chosen={"alpha": float(best.alpha)},
        detail={"rows": len(train), "block": protocol.block},
    )


def r2_per_image(fit: Ridge, scaler: StandardScaler, patches: Features) -> PerImage:
    """Each image's R2, mean of row and column: [images].

    All images have the same places, so the mean of these is the R2 of all patches together.
    """
    places = _places(patches)
    error = (fit.predict(scaler.transform(_rows(patches))) - places) ** 2
    per_image = error.reshape(*patches.shape[:2], 2).mean(axis=1)
    return np.asarray((1 - per_image / places.var(axis=0)).mean(axis=1), dtype=np.float64)


def _rows(patches: Features) -> Features:
    return patches.reshape(-1, patches.shape[-1])


def _places(patches: Features) -> NDArray[np.float64]:
    """Row and column of every patch of every image: [images * patches, 2]."""
    side = math.isqrt(patches.shape[1])
    places = np.stack(np.divmod(np.arange(side * side), side), axis=1)
    return np.tile(places.astype(np.float64), (len(patches), 1))
