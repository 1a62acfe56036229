"""I-JEPA with the positions of a spec: the student, and the features it must predict."""

from __future__ import annotations

import copy
from typing import Literal, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from stoplab_platform.specs import RunSpec
from stoplab_trainers.masking import TensorMasks
from stoplab_trainers.model.block import picked
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.init import initialise
from stoplab_trainers.model.predictor import Predictor
from stoplab_trainers.randomness import Noise

TARGET_EPS = 1e-5  # F.layer_norm's default, as in ijepa:src/train.py@52c1ae9


class Jepa(nn.Module):
    """The student: context encoder and predictor (of MAE: encoder and decoder)."""

    seen: Float[Tensor, "b k d"]
    """Context features of the last forward pass, without gradient: what A was applied to.

    A step takes them away.
    """

    def __init__(self, encoder: Encoder, predictor: Predictor) -> None:
        super().__init__()
        self.encoder, self.predictor = encoder, predictor

    def forward(
        self, images: Float[Tensor, "b 3 h w"], masks: TensorMasks, noise: Noise
    ) -> Float[Tensor, "b block n d"]:
        """What is predicted of the target patches, from the context patches alone."""
        features = self.encoder(images, masks.context)
        self.seen = features.detach()
        return cast(Tensor, self.predictor(features, masks, noise))


def build_model(spec: RunSpec) -> Jepa:
    """The student of a run on the CPU, its weights a function of seed and parameter names.

    Torch's global generator is neither read nor moved.
    """
    sizes, predictor = spec.model.sizes(), spec.model.predictor
    with torch.device("meta"):  # a start drawn by timm would be thrown away
        encoder = Encoder(sizes, spec.data.image_size)
        model = Jepa(
            encoder,
            Predictor(
                spec.positions,
                encoder_width=sizes.width,
                width=predictor.width,
                depth=predictor.depth,
                heads=spec.model.predictor_heads,
                grid=encoder.grid,
                output_width=spec.objective.output_width(sizes),
            ),
        )
    model = model.to_empty(device="cpu")
    initialise(model, spec.model.init, spec.seed)
    return model


def of_positions(name: str) -> bool:
    """Whether a weight of a `Jepa` is one that only some kinds of positions have."""
    of_some = ("predictor.mask_token", "predictor.noise.", "predictor.learned_table")
    return name.startswith(of_some)


def target_of(encoder: Encoder) -> Encoder:
    """The target encoder at step 0: a frozen copy."""
    return copy.deepcopy(encoder).requires_grad_(False)


@torch.no_grad()
def target_features(
    target: Encoder,
    images: Float[Tensor, "b 3 h w"],
    targets_index: Int64[Tensor, "b block n"],
    pool: Literal["max", "bilinear"] | None = None,
) -> Float[Tensor, "b block n d"]:
    """What the student must predict: the whole image's tokens at the target patches.

    Each token is normalised over its features (mean 0, variance 1, no weights) in fp32,
    whatever autocast says; with ``pool`` it is one of the map at half the resolution.
    """
    wanted = targets_index.flatten(1)
    if pool is None and wanted.shape[1] < target.grid**2:
        tokens = target(images, asked=wanted)
    else:  # blocks that overlap can ask for more rows than there are
        tokens = target(images)
        if pool is not None:
            tokens = low_resolution(tokens, target.grid, pool)
        tokens = picked(tokens, wanted)
    with torch.autocast(images.device.type, enabled=False):
        normal = F.layer_norm(tokens.float(), tokens.shape[-1:], eps=TARGET_EPS)
    return normal.reshape(*targets_index.shape, -1)


def low_resolution(
    tokens: Float[Tensor, "b n d"], grid: int, pool: Literal["max", "bilinear"]
) -> Float[Tensor, "b n d"]:
    """Each token replaced by that of its cell of 2 x 2 patches; ``grid`` is even."""
    batch, _, width = tokens.shape
    channels = tokens.float().transpose(1, 2).reshape(batch, width, grid, grid)
    if pool == "max":
        cells = F.max_pool2d(channels, 2)
    else:
        cells = F.interpolate(channels, scale_factor=0.5, mode="bilinear")
    whole = cells.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return whole.flatten(2).transpose(1, 2)
