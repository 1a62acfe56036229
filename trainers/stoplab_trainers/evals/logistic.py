"""Multinomial logistic regression, quick where features are many and correlated.

The optimum of scikit-learn's LogisticRegression (L2 on the weights, none on the intercept), which
takes hundreds of iterations to come near it on an encoder's features. Here coordinates are turned
to the principal axes and scaled by the loss's curvature at zero, which leaves L-BFGS a round bowl.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize
from torch import Tensor

MAX_ITERATIONS = 1000
NOTHING = 1e-7  # share of the largest variance below which an axis is rounding
TOLERANCE = 1e-5  # of the mean loss's gradient, in the scaled coordinates
MISSED = 1e-3  # a gradient that may change predictions: said in the log

log = logging.getLogger("stoplab.evals")


@dataclass(frozen=True)
class Fit:
    """One penalty's answer: class scores are ``weights @ feature + intercept``."""

    strength: float
    weights: Float[Tensor, "classes d"]
    intercept: Float[Tensor, "classes 1"]
    slope: float
    """Largest entry of the gradient that was left, in the scaled coordinates."""

    def predict(self, features: Float[Tensor, "n d"]) -> Int64[Tensor, " n"]:
        """The class with the highest score."""
        return (self.weights @ features.T + self.intercept).argmax(dim=0)


def fit_path(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    strengths: Sequence[float],
    *,
    intercept: bool = True,
) -> list[Fit]:
    """A fit for each of the ``strengths`` (scikit-learn's C), each started from the last one.

    Minimises, for n rows, mean cross-entropy + |weights|^2 / (2 n C); the intercept is free, or
    stays 0.
    """
    num_rows, num_classes = len(features), int(labels.max()) + 1
    variances, axes = torch.linalg.eigh((features.T @ features).double() / num_rows)
    real = variances > NOTHING * variances[-1]
    variances, axes = variances[real], axes[:, real].to(features.dtype)
    turned = features @ axes
    solution = np.zeros((num_classes, len(variances) + 1))  # the intercept comes last
    fits = []
    for strength in strengths:
        penalty = 1 / (num_rows * strength)
        curvature = variances / num_classes + penalty
        scale = np.append(curvature.rsqrt().numpy(), 1.0)
        result = _minimise(turned, labels, penalty, scale, solution / scale, intercept)
        solution = scale * result.x.reshape(solution.shape)
        slope = float(np.abs(result.jac).max(initial=0.0))
        if slope > MISSED:
            log.warning("logistic regression at C = %g missed its optimum: %s (slope %.1e)",
                        strength, result.message, slope)  # fmt: skip
        found = torch.from_numpy(solution).to(features.dtype)
        fits.append(Fit(strength, found[:, :-1] @ axes.T, found[:, -1:], slope))
    return fits


def _minimise(
    features: Float[Tensor, "n d"],
    labels: Int64[Tensor, " n"],
    penalty: float,
    scale: NDArray[np.float64],
    start: NDArray[np.float64],
    intercept: bool,
) -> OptimizeResult:
    """The optimum in coordinates divided by ``scale``: `x` has [classes, d + 1], in a row."""
    rows = torch.arange(len(labels))

    def loss_and_slope(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        # Classes come first: softmax and both products are several times faster so.
        weights = scale * flat.reshape(start.shape)
        found = torch.from_numpy(weights).to(features.dtype)
        log_shares = (found[:, :-1] @ features.T + found[:, -1:]).log_softmax(dim=0)
        loss = -log_shares[labels, rows].double().mean()
        error = log_shares.exp_()
        error[labels, rows] -= 1
        slope = torch.cat([error @ features, error.sum(dim=1, keepdim=True)], dim=1)
        slopes = slope.double().numpy() / len(labels)
        slopes[:, :-1] += penalty * weights[:, :-1]
        slopes[:, -1] *= intercept
        total = float(loss) + penalty / 2 * float((weights[:, :-1] ** 2).sum())
        return total, (slopes * scale).ravel()

    return minimize(
        loss_and_slope,
        start.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": MAX_ITERATIONS, "gtol": TOLERANCE, "ftol": 0.0, "maxcor": 20},
    )
