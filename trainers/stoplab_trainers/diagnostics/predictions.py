"""What the noise does to predictions: many draws of it, from the same context."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stoplab_platform.specs import RunSpec
from stoplab_trainers.diagnostics.landing import noise_of
from stoplab_trainers.masking import TensorMasks, draw_masks
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import Jepa
from stoplab_trainers.objective import objective_of

MASKS = 4  # of each image, so that most of its patches are predicted


@dataclass(frozen=True)
class Predicted:
    """By image and patch; NaN where a patch was in no target block.

    Both are rms over channels. Targets that are features have unit variance: an error of 1 is
    what predicting nothing at all would have.
    """

    error: Float[Tensor, "b patch"]
    """Distance between the mean prediction over draws and the target."""
    spread: Float[Tensor, "b patch"] | None
    """Deviation of the prediction over draws; None without noise."""


@torch.no_grad()
def predicted(
    model: Jepa,
    target: Encoder,
    spec: RunSpec,
    images: Float[Tensor, "b 3 h w"],
    draws: int,
) -> Predicted:
    """Predict the target patches of some masks under ``draws`` (two or more) of the noise.

    ``images`` are normalised, on the model's device, and no more than a batch.
    """
    objective, noisy = objective_of(spec), model.predictor.noise.noise_std > 0
    error = [_Means(spec.grid**2) for _ in images]
    spread = [_Means(spec.grid**2) for _ in images]
    for step in range(MASKS):
        for row, image in enumerate(images):
            masks = draw_masks(spec, step, slice(row, row + 1), image.device)
            found = _draws(model, spec, image[None], masks, step, draws if noisy else 1)
            wanted = objective.targets(target, image[None], masks)[0]
            where = masks.targets.flatten()
            error[row].add(where, (found.mean(dim=0) - wanted).square().mean(-1).sqrt())
            if noisy:
                spread[row].add(where, found.var(dim=0).mean(-1).sqrt())
    return Predicted(
        torch.stack([one.mean() for one in error]),
        torch.stack([one.mean() for one in spread]) if noisy else None,
    )


def _draws(
    model: Jepa,
    spec: RunSpec,
    image: Float[Tensor, "1 3 h w"],
    masks: TensorMasks,
    step: int,
    draws: int,
) -> Float[Tensor, "draw block n d"]:
    _, num_context = masks.context.shape
    _, num_blocks, num_target = masks.targets.shape
    features = model.encoder(image, masks.context)
    noise = noise_of(spec, step, draws, num_context, num_blocks, num_target, image.device)
    repeated = TensorMasks(masks.context.expand(draws, -1), masks.targets.expand(draws, -1, -1))
    found: Tensor = model.predictor(features.expand(draws, -1, -1), repeated, noise)
    return found.float()


class _Means:
    """Means by patch of what comes in parts."""

    def __init__(self, patches: int) -> None:
        self._sums, self._counts = torch.zeros(patches), torch.zeros(patches)

    def add(self, where: Tensor, values: Tensor) -> None:
        self._sums.index_add_(0, where.cpu(), values.flatten().cpu())
        self._counts.index_add_(0, where.cpu(), torch.ones(len(where)))

    def mean(self) -> Float[Tensor, " patch"]:
        return self._sums / self._counts  # 0 / 0 is the NaN of a patch never predicted
