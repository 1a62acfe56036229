"""Positions of the masked tokens: stochastic (StoP) or deterministic (I-JEPA)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from stoplab_platform.errors import Problem
from stoplab_platform.specs.base import Spec
from stoplab_platform.specs.kinds import Kinds, PluginSpec

Parametrization = Literal["stoplab", "official"]
Table = Literal["fixed", "learned"]
NoiseOn = Literal["masked", "context", "both"]
NoiseIn = Literal["encoder", "predictor"]
LEARNED = (
    "'learned' goes with deterministic positions alone: a table that is trained could grow until "
    "it drowns the noise, and nothing would then hold A away from 0; give 'fixed'"
)


class DeterministicPositions(Spec):
    """Masked tokens are predicted at their exact positions."""

    kind: Literal["deterministic"]
    """Names this variant."""
    parametrization: Parametrization = "stoplab"
    """`stoplab`: m = psi + mask token, which is I-JEPA. `official`: m = psi alone, which is
    the authors' repository with its flag off and not I-JEPA. Default stoplab."""
    table: Table = "fixed"
    """The predictor's table psi. `fixed`: sin-cos. `learned`: trained, from a normal of std 0.02
    (the row "learned pos" of the paper's table 6). Default fixed: every published config."""
    noise_std: ClassVar[float] = 0.0
    noise_on: ClassVar[NoiseOn] = "masked"
    noise_in: ClassVar[NoiseIn] = "encoder"


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
    noise_on: NoiseOn = "masked"
    """Which tokens get noise. Default masked: the best row of the paper's table 7."""
    parametrization: Parametrization = "stoplab"
    """`stoplab`: m = psi + mask token + A n; at noise_std 0 exactly I-JEPA. `official`:
    m = psi + A n + b with the bias as mask token (the authors' code). Default stoplab."""
    table: Table = "fixed"
    """The predictor's table psi; only `fixed` goes with noise. Default fixed: sin-cos."""

    @property
    def noise_in(self) -> NoiseIn:
        """Whose width the unit noise has."""
        return "predictor" if self.covariance == "identity" else "encoder"

    def checks(self) -> Iterator[Problem]:
        """What keeps A from collapsing rests on fixed positions."""
        if self.table == "learned":
            yield Problem(("table",), LEARNED)


class PluginPositions(PluginSpec):
    """Noise of a plug-in's own on the positions; `implementation` names a `PositionNoise`."""

    noise_std: float = Field(default=0.25, ge=0, le=10)
    """Standard deviation of the unit noise (no unit); at 0 none is drawn. Default 0.25."""
    noise_on: NoiseOn = "masked"
    """Which tokens get noise. Default masked."""
    noise_in: ClassVar[NoiseIn] = "encoder"
    """Whose width the unit noise has."""
    parametrization: ClassVar[Parametrization] = "stoplab"
    table: ClassVar[Table] = "fixed"


PositionsSpec = Annotated[
    DeterministicPositions | StochasticPositions | PluginPositions,
    Kinds("positions", PluginPositions),
]
