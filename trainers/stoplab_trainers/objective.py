"""What is learned: what the student is, what it must predict, and which encoder is judged.

`IJepa` and `Mae` are those of the product; a plug-in brings a third, which may stand on either.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from stoplab_platform.plugins import torch_part
from stoplab_platform.specs import RunSpec
from stoplab_platform.specs.objective import IjepaObjective, MaeObjective, PluginObjective
from stoplab_trainers.loss import smooth_l1, squared_error
from stoplab_trainers.masking import TensorMasks
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import Jepa, build_model, target_features, target_of
from stoplab_trainers.model.mae import target_pixels


@runtime_checkable  # the shape checks of the tests look at instances
class Objective(Protocol):
    """The parts of a step that an objective decides; made from its spec."""

    in_features: bool
    """Whether targets are features of the encoder, in its width: their spread is then watched."""

    def build(self, spec: RunSpec) -> Jepa:
        """The student at step 0, on the CPU."""

    def target(self, encoder: Encoder) -> Encoder:
        """The encoder that is judged, and may make targets.

        A copy of the student's becomes its moving average; the student's own stays as it is.
        """

    def targets(
        self, target: Encoder, images: Float[Tensor, "b 3 h w"], masks: TensorMasks
    ) -> Float[Tensor, "b block n d"]:
        """What the student must predict of the target patches, without gradient."""

    def loss(
        self, predicted: Float[Tensor, "b block n d"], targets: Float[Tensor, "b block n d"]
    ) -> Float[Tensor, ""]:
        """The mean over everything, fp32."""


class IJepa:
    """I-JEPA: features of the moving average of the encoder, by smooth L1."""

    in_features = True

    def __init__(self, spec: IjepaObjective) -> None:
        self._pool = spec.target_pool

    def build(self, spec: RunSpec) -> Jepa:
        """Encoder and predictor."""
        return build_model(spec)

    def target(self, encoder: Encoder) -> Encoder:
        """A copy, which becomes the moving average."""
        return target_of(encoder)

    def targets(
        self, target: Encoder, images: Float[Tensor, "b 3 h w"], masks: TensorMasks
    ) -> Float[Tensor, "b block n d"]:
        """Normalised tokens of the whole image, seen by the target encoder."""
        return target_features(target, images, masks.targets, self._pool)

    def loss(
        self, predicted: Float[Tensor, "b block n d"], targets: Float[Tensor, "b block n d"]
    ) -> Float[Tensor, ""]:
        """Smooth L1."""
        return smooth_l1(predicted, targets)


class Mae:
    """MAE: pixels of the masked patches, by squared error. No moving average: it judges itself."""

    in_features = False

    def __init__(self, spec: MaeObjective) -> None:
        self._normalised = spec.normalise_pixels

    def build(self, spec: RunSpec) -> Jepa:
        """Encoder, and as decoder a predictor onto pixels."""
        return build_model(spec)

    def target(self, encoder: Encoder) -> Encoder:
        """The student's encoder itself: evaluations, checkpoints and hashes take it from here."""
        return encoder

    def targets(
        self, target: Encoder, images: Float[Tensor, "b 3 h w"], masks: TensorMasks
    ) -> Float[Tensor, "b block n d"]:
        """Pixels of the masked patches."""
        size = target.patch_size
        return target_pixels(images, masks.targets, size, normalised=self._normalised)

    def loss(
        self, predicted: Float[Tensor, "b block n d"], targets: Float[Tensor, "b block n d"]
    ) -> Float[Tensor, ""]:
        """Squared error."""
        return squared_error(predicted, targets)


def objective_of(spec: RunSpec) -> Objective:
    """The objective of a run, a plug-in's where the spec names one."""
    wanted = spec.objective
    if isinstance(wanted, PluginObjective):
        made: Objective = torch_part("objective", wanted.kind, wanted.implementation)(wanted)
        return made
    return IJepa(wanted) if isinstance(wanted, IjepaObjective) else Mae(wanted)
