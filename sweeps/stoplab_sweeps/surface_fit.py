"""A Gaussian process for a handful of measured points, with priors in place of many points.

With four to nine points the likelihood alone often prefers a flat or a jagged surface; log-normal
priors on the kernel's numbers (Rasmussen and Williams 2006, section 5.4) keep it sensible.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize, stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

Floats = NDArray[np.float64]

BOUNDS = (1e-6, 1e4)  # far beyond what the priors let happen
SCALE, SCALE_SPREAD = 0.5, 0.7  # of length scales, in the unit square; spread in logarithms
HEIGHT_SPREAD = 1.0  # of the kernel's variance, about that of the values
NOISE, NOISE_SPREAD = 0.05, 1.0  # share of the values' variance that is no surface
JITTER = 1e-8
FLAT = 1e-12  # values closer than this are all the same
DIGITS = 6  # of numbers that are written down


@dataclass(frozen=True)
class Fit:
    """A surface with its uncertainty; inputs in their own units, one column a varied axis."""

    regressor: GaussianProcessRegressor
    low: Floats
    width: Floats
    centre: float
    height: float

    @classmethod
    def of(cls, inputs: Floats, values: Floats, variances: Floats | None = None) -> Self:
        """Fit ``values`` [n] at ``inputs`` [n, axes].

        ``variances`` [n]: of each value's own error, known from replicates; None where unknown,
        then one noise for all is fitted.
        """
        low = inputs.min(axis=0)
        width = np.ptp(inputs, axis=0)
        assert (width > 0).all(), "every axis varies"
        centre, height = float(values.mean()), float(values.std())
        height = height if height > FLAT else 1.0
        alpha = JITTER if variances is None else variances / height**2 + JITTER
        kernel, prior = _kernel(inputs.shape[1], noisy=variances is None)
        regressor = GaussianProcessRegressor(kernel, alpha=alpha, optimizer=_optimizer(prior))
        regressor.fit((inputs - low) / width, (values - centre) / height)
        return cls(regressor, low, width, centre, height)

    def at(self, inputs: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation [n] of the surface itself, without a measurement's noise."""
        unit = (inputs - self.low) / self.width
        mean, std = self.regressor.predict(unit, return_std=True)
        noise = self.regressor.kernel_.get_params().get("k2__noise_level", 0.0)
        variance = np.clip(std**2 - noise, 0.0, None)
        return self.centre + self.height * mean, self.height * np.sqrt(variance)

    def weights(self, inputs: Floats) -> Floats:
        """How much each fitted value counts for the mean at ``inputs`` [places, n]."""
        unit = (inputs - self.low) / self.width
        against = self.regressor.kernel_(unit, self.regressor.X_train_)
        found: Floats = linalg.cho_solve((self.regressor.L_, True), against.T).T
        return found


def expected_improvement(mean: Floats, std: Floats, best: float) -> Floats:
    """How much more than ``best`` a measurement is expected to find (Jones et al. 1998)."""
    gain, spread = mean - best, np.maximum(std, FLAT)
    found: Floats = gain * stats.norm.cdf(gain / spread) + spread * stats.norm.pdf(gain / spread)
    return np.maximum(found, 0.0)


def plain(values: Floats) -> Any:
    """An array as lists, for JSON."""
    return np.round(values, DIGITS).tolist()


def _kernel(axes: int, *, noisy: bool) -> tuple[Any, Floats]:
    """The kernel, and (mean, spread) of the prior of each of its parameters, in logarithms."""
    smooth = ConstantKernel(1.0, BOUNDS) * Matern([SCALE] * axes, [BOUNDS] * axes, nu=2.5)
    prior = [(0.0, HEIGHT_SPREAD), *[(math.log(SCALE), SCALE_SPREAD)] * axes]
    if not noisy:
        return smooth, np.array(prior)
    prior.append((math.log(NOISE), NOISE_SPREAD))
    return smooth + WhiteKernel(NOISE, BOUNDS), np.array(prior)


def _optimizer(prior: Floats) -> Callable[..., tuple[Floats, float]]:
    """Finds the mode of the posterior in place of the likelihood's maximum."""
    mean, spread = prior.T

    def search(objective: Any, start: Floats, bounds: Floats) -> tuple[Floats, float]:
        def loss(theta: Floats) -> tuple[float, Floats]:
            value, slope = objective(theta, eval_gradient=True)
            away = (theta - mean) / spread
            return float(value + 0.5 * away @ away), slope + away / spread

        limits = optimize.Bounds(*bounds.T)
        found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=limits)
        return found.x, float(found.fun)

    return search
