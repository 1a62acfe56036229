"""Location probe: how well row and column of a patch can be read from its features.

Ours. Positions are added to the encoder's input, so an untrained encoder scores high too: read it
beside `init/location_r2`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from stoplab_platform.specs.evals import LocationEval
from stoplab_trainers.evals.features import Bank, Features, On
from stoplab_trainers.evals.outcome import Outcome

STRENGTHS = (1.0, 1e2, 1e4)  # of the ridge


def location(protocol: LocationEval, bank: Bank, on: On, seed: int) -> Outcome:
    """R2 of a ridge regression, mean of row and column; nothing where there are no patches."""
    train, val, judged = (bank.patches(part) for part in ("train", "val", on))
    if train is None or val is None or judged is None:
        return Outcome({})
    scaler = StandardScaler().fit(_rows(train))
    fits = [
        Ridge(alpha=strength).fit(scaler.transform(_rows(train)), _places(train))
        for strength in STRENGTHS
    ]
    best = max(fits, key=lambda fit: _r2(fit, scaler, val))
    return Outcome({"location_r2": _r2(best, scaler, judged)}, chosen={"alpha": float(best.alpha)})


def _r2(fit: Ridge, scaler: StandardScaler, patches: Features) -> float:
    return float(r2_score(_places(patches), fit.predict(scaler.transform(_rows(patches)))))


def _rows(patches: Features) -> Features:
    return patches.reshape(-1, patches.shape[-1])


def _places(patches: Features) -> NDArray[np.float64]:
    """Row and column of every patch of every image: [images * patches, 2]."""
    side = math.isqrt(patches.shape[1])
    places = np.stack(np.divmod(np.arange(side * side), side), axis=1)
    return np.tile(places.astype(np.float64), (len(patches), 1))
