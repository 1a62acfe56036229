"""Linear probe: multinomial logistic regression on standardised features.

Ours, in the place of the papers' four SGD heads on augmented images, the best of which they
report: convex, so that it has one answer and nothing to tune but the penalty's strength.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler

from stoplab_platform.specs.evals import LinearEval
from stoplab_trainers.evals.features import Bank, On
from stoplab_trainers.evals.logistic import fit_path
from stoplab_trainers.evals.outcome import Outcome, accuracy

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C: small is a strong penalty

Labels = NDArray[np.int64]


def linear(protocol: LinearEval, bank: Bank, on: On, seed: int) -> Outcome:
    """Fitted on the training split; strength chosen on the validation split."""
    everything = np.arange(len(bank.labels("train")))
    predictions, strength = probe(bank, everything, on)
    top1 = accuracy(predictions, bank.labels(on))
    return Outcome({"linear_top1": top1}, predictions, {"C": strength})


def probe(bank: Bank, rows: NDArray[np.int64], on: On) -> tuple[Labels, float]:
    """Predictions for the split ``on`` after fitting ``rows`` of the training split, and C.

    Features are standardised by the statistics of the fitted rows alone; of equally good
    strengths the strongest penalty wins.
    """
    scaler = StandardScaler().fit(bank.features("train")[rows])
    train = torch.from_numpy(scaler.transform(bank.features("train")[rows]))
    val = torch.from_numpy(scaler.transform(bank.features("val")))
    judged = val if on == "val" else torch.from_numpy(scaler.transform(bank.features(on)))
    fits = fit_path(train, torch.from_numpy(bank.labels("train")[rows]), STRENGTHS)
    best = max(fits, key=lambda fit: accuracy(fit.predict(val).numpy(), bank.labels("val")))
    predictions: Labels = best.predict(judged).numpy()
    return predictions, best.strength
