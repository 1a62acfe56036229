"""Positions on the patch grid: the fixed sin-cos table, and StoP's noise on top of it.

StoP replaces the exact position psi_j of a token by a draw from N(psi_j, sigma^2 A A^T), written
as psi_j + A n_j with n_j ~ N(0, sigma^2 I) in encoder width (arXiv 2308.00566v2, section 3).
sigma is a standard deviation: the authors' code calls it a variance and uses it as one
(StoP:src/deit.py@72206b3).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stoplab_platform.errors import SpecError
from stoplab_platform.plugins import torch_part
from stoplab_platform.specs.positions import (
    PluginPositions,
    PositionsSpec,
    StochasticPositions,
)
from stoplab_trainers.model.linear import linear


def sincos_2d(width: int, grid: int) -> Float[Tensor, "patch width"]:
    """The fixed position table of a square grid, patches in rows.

    The first half of the channels holds the column, the second the row; a half is
    [sin | cos] over frequencies 10000^(-k / (width / 4)).
    """
    if width % 4 or width <= 0:
        raise ValueError(f"a sin-cos table needs a width that divides by 4, not {width}")
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.outer(torch.arange(grid, dtype=torch.float64), frequencies)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    column = axis.repeat(grid, 1)
    row = axis.repeat_interleave(grid, dim=0)
    return torch.cat([column, row], dim=1).float()


def position_step(width: int) -> float:
    """Distance in the sin-cos table between two neighbouring patches (same everywhere)."""
    table = sincos_2d(width, 2)
    return float((table[1] - table[0]).norm())


def learned_table(width: int, grid: int) -> nn.Parameter:
    """A table that is trained, to be drawn by `init.initialise`: [1, patch, width]."""
    return nn.Parameter(torch.zeros(1, grid * grid, width))


def fixed_table(width: int, grid: int) -> nn.Parameter:
    """The table as a parameter that is never trained, as timm keeps its own: [1, patch, width]."""
    return nn.Parameter(sincos_2d(width, grid)[None], requires_grad=False)


class PositionNoise(nn.Module):
    """What a spec of positions adds to masked and to context tokens.

    A plug-in's is a subclass: it has the same arguments and may have its own `forward`.

    It owns no weight but the noise's own projection of `untied`; the tied A is the predictor's
    `embed.weight` and comes in as an argument. At noise_std 0 nothing is drawn and nothing is
    added, and `untied`'s projection is frozen, so that no trained weight goes without gradient.
    """

    proj: nn.Linear | None

    def __init__(self, spec: PositionsSpec, encoder_width: int, width: int) -> None:
        super().__init__()
        self.noise_std, self.noise_on = spec.noise_std, spec.noise_on
        self.covariance = spec.covariance if isinstance(spec, StochasticPositions) else "learned"
        if self.covariance == "untied":
            self.proj = nn.Linear(encoder_width, width, bias=False)
            self.proj.requires_grad_(self.noise_std > 0)
        else:
            self.proj = None

    @property
    def on_masked(self) -> bool:
        """Whether masked tokens get noise."""
        return self.noise_std > 0 and self.noise_on in ("masked", "both")

    @property
    def on_context(self) -> bool:
        """Whether context tokens get noise."""
        return self.noise_std > 0 and self.noise_on in ("context", "both")

    def forward(
        self, unit: Float[Tensor, "*token noise"], tied: Float[Tensor, "width encoder"]
    ) -> Float[Tensor, "*token width"]:
        """The displacement noise_std x A n of tokens, from unit noise n."""
        scaled = self.noise_std * unit
        matrix = self.matrix(tied)
        return scaled if matrix is None else linear(scaled, matrix, None)

    def matrix(self, tied: Float[Tensor, "width encoder"]) -> Float[Tensor, "width encoder"] | None:
        """The A of the covariance sigma^2 A A^T; None stands for the identity."""
        if self.covariance == "identity":
            return None
        return tied if self.proj is None else self.proj.weight


def position_noise(spec: PositionsSpec, encoder_width: int, width: int) -> PositionNoise:
    """The noise of a spec, a plug-in's where the spec is one's."""
    if not isinstance(spec, PluginPositions):
        return PositionNoise(spec, encoder_width, width)
    noise = torch_part("positions", spec.kind, spec.implementation)(spec, encoder_width, width)
    if not isinstance(noise, PositionNoise):
        text = f"{spec.implementation} makes no {PositionNoise.__name__}; derive it from that class"
        raise SpecError.of("positions", text)
    return noise
