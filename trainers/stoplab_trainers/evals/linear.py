"""Linear probe: multinomial logistic regression on standardised features.

Ours, in the place of the papers' four SGD heads on augmented images, the best of which they
report: convex, so that it has one answer and nothing to tune but the penalty's strength.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from stoplab_platform.specs.evals import LinearEval
from stoplab_trainers.evals.features import Bank, On
from stoplab_trainers.evals.logistic import fit_path
from stoplab_trainers.evals.outcome import Outcome, accuracy

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C: small is a strong penalty

Labels = NDArray[np.int64]


def linear(protocol: LinearEval, bank: Bank, on: On, seed: int) -> Outcome:
    """Fitted on the training split; strength chosen on the validation split."""
    found = bank.once(("linear",), lambda: Probe(bank, np.arange(len(bank.labels("train")))))
    predictions = found.predict(on)
    top1 = accuracy(predictions, bank.labels(on))
    return Outcome({"linear_top1": top1}, predictions, {"C": found.strength})


class Probe:
    """A classifier fitted on some ``rows`` of the training split.

    Features are standardised by the statistics of these rows alone; of equally good strengths
    the strongest penalty wins.
    """

    def __init__(self, bank: Bank, rows: NDArray[np.int64]) -> None:
        self._bank = bank
        features = bank.features("train")[rows]
        self._scaler = StandardScaler().fit(features)
        standardised = torch.from_numpy(self._scaler.transform(features))
        fits = fit_path(standardised, torch.from_numpy(bank.labels("train")[rows]), STRENGTHS)
        val, truth = self._standardised("val"), bank.labels("val")
        self._fit = max(fits, key=lambda fit: accuracy(fit.predict(val).numpy(), truth))
        self.strength = self._fit.strength

    def predict(self, on: On) -> Labels:
        """Each image's class: [n]."""
        predictions: Labels = self._fit.predict(self._standardised(on)).numpy()
        return predictions

    def _standardised(self, on: On) -> Tensor:
        return torch.from_numpy(self._scaler.transform(self._bank.features(on)))
