"""Linear probe: multinomial logistic regression on standardised features.

Ours, beside the papers' four SGD heads on augmented images (`linear_sgd`): convex, so that it has
one answer and nothing to tune but the penalty's strength.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from stoplab_platform.specs.evals import LinearEval
from stoplab_trainers.evals.features import Bank, On
from stoplab_trainers.evals.kept import Features
from stoplab_trainers.evals.logistic import fit_path
from stoplab_trainers.evals.outcome import Outcome, accuracy, told

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C: small is a strong penalty

Labels = NDArray[np.int64]


def linear(protocol: LinearEval, bank: Bank, on: On, seed: int) -> Outcome:
    """Fitted on the training split; strength chosen on the validation split."""
    found = whole_probe(bank)
    predictions = found.predict(bank.features(on))
    chosen, detail = {"C": found.strength}, {"slope": found.slope}
    return told("linear_top1", predictions, bank.labels(on), chosen=chosen, detail=detail)


def whole_probe(bank: Bank) -> Probe:
    """The probe on the whole training split, fitted once."""
    return bank.once(("linear",), lambda: Probe(bank, np.arange(len(bank.labels("train")))))


class Probe:
    """A classifier fitted on some ``rows`` of the training split.

    Features are standardised by the statistics of these rows alone; of equally good strengths
    the strongest penalty wins.
    """

    def __init__(
        self,
        bank: Bank,
        rows: NDArray[np.int64],
        strengths: Sequence[float] = STRENGTHS,
        *,
        intercept: bool = True,
    ) -> None:
        features, labels = bank.features("train")[rows], bank.labels("train")[rows]
        self._scaler = StandardScaler().fit(features)
        known = self._standardised(features)
        fits = fit_path(known, torch.from_numpy(labels), strengths, intercept=intercept)
        self._fit = fits[0]
        if len(fits) > 1:
            val, truth = self._standardised(bank.features("val")), bank.labels("val")
            self._fit = max(fits, key=lambda fit: accuracy(fit.predict(val).numpy(), truth))
        self.strength, self.slope = self._fit.strength, self._fit.slope

    def predict(self, features: Features) -> Labels:
        """Each row's class: [n]."""
        predictions: Labels = self._fit.predict(self._standardised(features)).numpy()
        return predictions

    def _standardised(self, features: Features) -> Tensor:
        return torch.from_numpy(self._scaler.transform(features))
