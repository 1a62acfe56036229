"""Linear probe: multinomial logistic regression on standardised features."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from stoplab_platform.specs.evals import LinearEval
from stoplab_trainers.evals.features import Bank, Features, On
from stoplab_trainers.evals.outcome import Outcome, accuracy

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C, weakest last
MAX_ITERATIONS = 500

Labels = NDArray[np.int64]


def linear(protocol: LinearEval, bank: Bank, on: On, seed: int) -> Outcome:
    """Fitted on the training split, strength chosen on the validation split; never on test."""
    rows = np.arange(len(bank.labels("train")))
    predictions, strength = probe(bank, rows, on)
    top1 = accuracy(predictions, bank.labels(on))
    return Outcome({"linear_top1": top1}, predictions, {"C": strength})


def probe(bank: Bank, rows: NDArray[np.int64], on: On) -> tuple[Labels, float]:
    """Predictions for the split ``on`` from ``rows`` of the training split, and the C chosen."""
    train, labels = bank.features("train")[rows], bank.labels("train")[rows]
    scaler = StandardScaler().fit(train)  # of the fitted rows alone
    train, val = scaler.transform(train), scaler.transform(bank.features("val"))
    best = (-1.0, 0.0)
    chosen = None
    for strength in STRENGTHS:
        model = _fit(train, labels, strength)
        top1 = accuracy(model.predict(val), bank.labels("val"))
        if chosen is None or top1 > best[0]:
            best, chosen = (top1, strength), model
    assert chosen is not None
    judged = scaler.transform(bank.features(on))
    predictions: Labels = chosen.predict(judged)
    return predictions, best[1]


def _fit(features: Features, labels: Labels, strength: float) -> LogisticRegression:
    model = LogisticRegression(C=strength, solver="lbfgs", max_iter=MAX_ITERATIONS, tol=1e-4)
    with warnings.catch_warnings():
        # The weakest strengths may stop at MAX_ITERATIONS: that is a part of the protocol.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(features, labels)
