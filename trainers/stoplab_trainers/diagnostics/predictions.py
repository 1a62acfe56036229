"""What the noise does to predictions: many draws of it, from the same context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from stoplab_platform.specs import RunSpec
from stoplab_trainers.diagnostics.landing import noise_of
from stoplab_trainers.diagnostics.masks import first_masks
from stoplab_trainers.masking import TensorMasks
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import Jepa
from stoplab_trainers.objective import objective_of

MASKS = 4  # of each image, so that most of its patches are predicted
AT_ONCE = 32  # draws that are predicted in one batch: memory does not grow with their number


class Shown(NamedTuple):
    """What the encoder makes of images under the masks of one step."""

    step: int
    masks: TensorMasks
    features: Float[Tensor, "b k d"]


@dataclass(frozen=True)
class Predicted:
    """By image and patch, each an rms over channels; NaN where a patch was in no target block."""

    error: Float[Tensor, "b patch"]
    """Distance between the mean prediction over draws and the target."""
    zero: Float[Tensor, "b patch"]
    """Size of the target: the error of predicting 0. Features of unit variance have 1."""
    spread: Float[Tensor, "b patch"] | None
    """Deviation of the prediction over draws; None without noise."""


@torch.no_grad()
def shown(model: Jepa, spec: RunSpec, images: Float[Tensor, "b 3 h w"]) -> list[Shown]:
    """The context of ``images`` under the masks of a run's first steps.

    They are normalised, on the model's device, and no more than `masks.rows_together`.
    """
    drawn = [first_masks(spec, step, len(images), images.device) for step in range(MASKS)]
    return [
        Shown(step, masks, model.encoder(images, masks.context).float())
        for step, masks in enumerate(drawn)
    ]


@torch.no_grad()
def predicted(
    model: Jepa,
    target: Encoder,
    spec: RunSpec,
    images: Float[Tensor, "b 3 h w"],
    looks: Sequence[Shown],
    draws: int,
) -> Predicted:
    """Predict the target patches of ``looks``, which are `shown` of ``images``.

    Under ``draws`` (two or more) of the noise, where the positions take any.
    """
    objective, noisy = objective_of(spec), model.predictor.noise.noise_std > 0
    error, zero, spread = ([_Means(spec.grid**2) for _ in images] for _ in range(3))
    for look in looks:
        targets = objective.targets(target, images, look.masks).float()
        for row, (where, wanted) in enumerate(zip(look.masks.targets, targets, strict=True)):
            mean, variance = _over_draws(model, spec, look, row, draws if noisy else 1)
            error[row].add(where, _rms(mean - wanted))
            zero[row].add(where, _rms(wanted))
            spread[row].add(where, variance.mean(dim=-1).sqrt())
    return Predicted(_stacked(error), _stacked(zero), _stacked(spread) if noisy else None)


def _over_draws(
    model: Jepa, spec: RunSpec, look: Shown, row: int, draws: int
) -> tuple[Float[Tensor, "block n d"], Float[Tensor, "block n d"]]:
    """Mean and variance of one image's predictions, taken up a few draws at a time."""
    context, targets = (index[row] for index in look.masks)
    num_blocks, num_target = targets.shape
    mean = squares = torch.zeros((), device=look.features.device)
    for start in range(0, draws, AT_ONCE):
        rows = slice(start, min(start + AT_ONCE, draws))
        count = rows.stop - start
        noise = noise_of(
            spec, look.step, rows, len(context), num_blocks, num_target, context.device
        )
        masks = TensorMasks(context.expand(count, -1), targets.expand(count, -1, -1))
        found = model.predictor(look.features[row].expand(count, -1, -1), masks, noise).float()
        # Moments of both parts together (Chan, Golub and LeVeque 1979).
        ahead = found.mean(dim=0) - mean
        squares = squares + found.var(dim=0, correction=0) * count
        squares = squares + ahead.square() * start * count / rows.stop
        mean = mean + ahead * count / rows.stop
    return mean, squares / max(draws - 1, 1)


def _rms(values: Float[Tensor, "block n d"]) -> Float[Tensor, "block n"]:
    return values.square().mean(dim=-1).sqrt()


def _stacked(means: Sequence[_Means]) -> Float[Tensor, "b patch"]:
    return torch.stack([one.mean() for one in means])


class _Means:
    """Means by patch of what comes in parts."""

    def __init__(self, patches: int) -> None:
        self._sums, self._counts = torch.zeros(patches), torch.zeros(patches)

    def add(self, where: Tensor, values: Tensor) -> None:
        index, flat = where.flatten().cpu(), values.flatten().cpu()
        self._sums.index_add_(0, index, flat)
        self._counts.index_add_(0, index, torch.ones(len(index)))

    def mean(self) -> Float[Tensor, " patch"]:
        return self._sums / self._counts  # 0 / 0 is the NaN of a patch never predicted
