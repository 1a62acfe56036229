"""How strong the noise is, and in which directions it points: norms, and the spectrum of Sigma.

The law of our own noise is known. That of a plug-in's is its own, so it is measured on draws.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from stoplab_platform.specs import RunSpec
from stoplab_trainers.diagnostics.landing import displacements
from stoplab_trainers.model.jepa import Jepa
from stoplab_trainers.model.positions import PositionNoise, position_step

LENGTH_DRAWS = 1024  # of a plug-in's noise, for its length
SIGMA_DRAWS = 8192  # and for its covariance


@torch.no_grad()
def position_stats(
    model: Jepa, spec: RunSpec, features: Float[Tensor, "*token d"]
) -> dict[str, float]:
    """How strong the noise is (0 for positions that take none), and what could drown it.

    - ``stop/a_norm``: Frobenius norm of the context projection A.
    - ``stop/noise_to_signal``: rms of the noise over rms of A s, where ``features`` s are what the
      student's encoder makes of context patches.
    - ``stop/displacement_patches``: rms length of the noise over the distance in the position
      table between two neighbours; about 1.15 in the published ViT-B at its start.
    - ``stop/bias_norm``, ``stop/mask_token_norm``: of A's bias, and of the mask token where the
      parametrization has one.
    - ``stop/norm_gain``: rms gain of the encoder's final norm. It is free of weight decay, so the
      signal can be raised by it instead of by A.
    """
    predictor = model.predictor
    tied, length = predictor.embed.weight, _length(model, spec)
    signal = float((features.float() @ tied.T.float()).square().sum(dim=-1).mean().sqrt())
    found = {
        "stop/a_norm": float(tied.norm()),
        "stop/noise_to_signal": length / max(signal, 1e-12),
        "stop/displacement_patches": length / position_step(spec.model.predictor.width),
        "stop/bias_norm": float(predictor.embed.bias.norm()),
        "stop/norm_gain": float(model.encoder.vit.norm.weight.square().mean().sqrt()),
    }
    if predictor.mask_token is not None:
        found["stop/mask_token_norm"] = float(predictor.mask_token.norm())
    return found


@torch.no_grad()
def spectrum(model: Jepa, spec: RunSpec) -> NDArray[np.float64] | None:
    """Eigenvalues of Sigma, largest first: [width]; None without noise.

    Sigma = noise_std^2 A A^T; of a plug-in's noise the mean of x x^T over its draws x.
    """
    tied, noise = model.predictor.embed.weight, model.predictor.noise
    if noise.noise_std == 0:
        return None
    if not is_known(noise):
        moved = displacements(model, spec, 1, SIGMA_DRAWS)[:, 0].cpu().double()
        found = torch.linalg.eigvalsh(moved.T @ moved / len(moved))
        measured: NDArray[np.float64] = found.flip(0).clamp(min=0).numpy()
        return measured
    width = tied.shape[0]
    matrix = noise.matrix(tied)
    if matrix is None:
        return np.full(width, noise.noise_std**2)
    values = np.zeros(width)  # a matrix of fewer columns than rows leaves directions without noise
    sizes = torch.linalg.svdvals(matrix.float().cpu()).double().numpy()
    values[: len(sizes)] = (noise.noise_std * sizes) ** 2
    return values


def is_known(noise: PositionNoise) -> bool:
    """Whether the law of a noise is noise_std x A n, and not a plug-in's own."""
    return type(noise) is PositionNoise


def spectrum_stats(values: NDArray[np.float64]) -> dict[str, float]:
    """``stop/sigma_rank`` and ``stop/sigma_top_share`` (fraction of the variance) of Sigma."""
    return {
        "stop/sigma_rank": effective_rank(values),
        "stop/sigma_top_share": float(values.max() / max(values.sum(), 1e-300)),
    }


def effective_rank(values: NDArray[np.float64]) -> float:
    """exp of the entropy of a spectrum's shares (Roy and Vetterli, EUSIPCO 2007); 0 for none."""
    if not values.sum() > 0:
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _length(model: Jepa, spec: RunSpec) -> float:
    """Root of the noise's mean squared length, in the units of the position table."""
    tied, noise = model.predictor.embed.weight, model.predictor.noise
    if noise.noise_std == 0:
        return 0.0
    if not is_known(noise):
        moved = displacements(model, spec, 1, LENGTH_DRAWS)
        return float(moved.square().sum(dim=-1).mean().sqrt())
    matrix = noise.matrix(tied)
    return noise.noise_std * (len(tied) ** 0.5 if matrix is None else float(matrix.norm()))
