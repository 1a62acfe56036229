"""Positions of the masked tokens: stochastic (StoP) or deterministic (I-JEPA)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from stoplab_platform.specs.base import Spec

Parametrization = Literal["stoplab", "official"]


class DeterministicPositions(Spec):
    """Masked tokens are predicted at their exact positions."""

    kind: Literal["deterministic"]
    """Names this variant."""
    parametrization: Parametrization = "stoplab"
    """`stoplab`: m = psi + mask token, which is I-JEPA. `official`: m = psi alone, which is
    the authors' repository with its flag off and not I-JEPA. Default stoplab."""


class StochasticPositions(Spec):
    """Masked tokens are predicted at positions drawn from N(psi, noise_std^2 A A^T)."""

    kind: Literal["stochastic"]
    """Names this variant."""
    noise_std: float = Field(default=0.25, ge=0, le=10)
    """Standard deviation of the unit noise before the projection A (no unit; the authors'
    code calls it `var`). Default 0.25: StoP paper, tables 10 and 11 (ViT-B and ViT-L)."""
    covariance: Literal["learned", "identity", "untied"] = "learned"
    """`learned`: A is the context projection (StoP). `identity`: isotropic noise in predictor
    width. `untied`: noise has a projection of its own. Default learned: paper, section 3."""
    noise_on: Literal["masked", "context", "both"] = "masked"
    """Which tokens get noise. Default masked: the best row of the paper's table 7."""
    parametrization: Parametrization = "stoplab"
    """`stoplab`: m = psi + mask token + A n; at noise_std 0 exactly I-JEPA. `official`:
    m = psi + A n + b with the bias as mask token (the authors' code). Default stoplab."""


PositionsSpec = Annotated[DeterministicPositions | StochasticPositions, Field(discriminator="kind")]
