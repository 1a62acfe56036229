"""How strong the noise is, and in which directions it points: norms, and the spectrum of Sigma."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from stoplab_platform.specs import RunSpec
from stoplab_trainers.model.jepa import Jepa
from stoplab_trainers.model.positions import position_step


@torch.no_grad()
def position_stats(
    model: Jepa, spec: RunSpec, features: Float[Tensor, "n d"] | None = None
) -> dict[str, float]:
    """How strong the noise is (0 for positions that take none), and what could drown it.

    - ``stop/a_norm``: Frobenius norm of the context projection A.
    - ``stop/noise_to_signal``: rms of the noise over rms of A s, for ``features`` s (tokens of
      unit variance where none are given), both per channel.
    - ``stop/displacement_patches``: rms length of the noise over the distance in the position
      table between two neighbours; about 1.15 in the published ViT-B at its start.
    - ``stop/bias_norm``, ``stop/mask_token_norm``: of A's bias, and of the mask token where the
      parametrization has one.
    - ``stop/norm_gain``: rms gain of the encoder's final norm. It is free of weight decay, so the
      signal can be raised by it instead of by A.
    """
    predictor = model.predictor
    tied, noise = predictor.embed.weight, predictor.noise
    matrix = noise.matrix(tied)
    gain = tied.shape[0] ** 0.5 if matrix is None else float(matrix.norm())
    length = noise.noise_std * gain
    if features is None:
        signal = float(tied.norm())
    else:
        signal = float((features.float() @ tied.T.float()).square().sum(dim=1).mean().sqrt())
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
def spectrum(model: Jepa) -> NDArray[np.float64] | None:
    """Eigenvalues of Sigma = noise_std^2 A A^T, largest first: [width]; None without noise."""
    tied, noise = model.predictor.embed.weight, model.predictor.noise
    if noise.noise_std == 0:
        return None
    width = tied.shape[0]
    matrix = noise.matrix(tied)
    if matrix is None:
        return np.full(width, noise.noise_std**2)
    values = np.zeros(width)  # a matrix of fewer columns than rows leaves directions without noise
    found = torch.linalg.svdvals(matrix.float().cpu()).double().numpy()
    values[: len(found)] = (noise.noise_std * found) ** 2
    return values


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
