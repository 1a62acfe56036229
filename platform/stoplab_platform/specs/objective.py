"""What is learned: features of the EMA encoder (I-JEPA), or pixels (MAE)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from stoplab_platform.specs.base import Spec
from stoplab_platform.specs.kinds import Kinds, PluginSpec
from stoplab_platform.specs.model import VitSizes

COLOURS = 3


class IjepaObjective(Spec):
    """I-JEPA: the features of the moving average of the encoder, by smooth L1."""

    kind: Literal["ijepa"]
    """Names this variant."""
    target_pool: Literal["max", "bilinear"] | None = None
    """Targets of half the resolution (the paper's table 8, which tells no more than that and for
    which no code was released): after the target encoder's last norm, 2 x 2 patches become one
    cell by its maximum or its bilinear value (their mean), and every masked patch predicts the
    cell that it lies in. null: targets as they are. Default null."""
    averages: ClassVar[bool] = True

    def output_width(self, sizes: VitSizes) -> int:
        """Channels that the predictor predicts: the encoder's."""
        return sizes.width


class MaeObjective(Spec):
    """MAE: the pixels of the masked patches, by squared error. Experimental.

    Noise on its positions is StoP on MAE, of which the authors report that it did not work
    (section 6 of the paper, without a number).
    """

    kind: Literal["mae"]
    """Names this variant."""
    normalise_pixels: bool = True
    """Subtract the mean of each patch's pixels and divide by their deviation (`norm_pix_loss`).
    Default true: the published MAE."""
    averages: ClassVar[bool] = False

    def output_width(self, sizes: VitSizes) -> int:
        """Channels that the predictor predicts: a patch's pixels."""
        return COLOURS * sizes.patch_size**2


class PluginObjective(PluginSpec):
    """An objective of a plug-in; `implementation` names a `stoplab_trainers` `Objective`."""

    averages: ClassVar[bool] = True
    """Whether a moving average of the encoder makes the targets and is judged."""

    def output_width(self, sizes: VitSizes) -> int:
        """Channels that the predictor predicts."""
        return sizes.width


ObjectiveSpec = Annotated[
    IjepaObjective | MaeObjective | PluginObjective, Kinds("objective", PluginObjective)
]
