"""Small models and their inputs, for tests."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from stoplab_platform.specs import RunSpec
from stoplab_trainers.masking import TensorMasks, draw_masks
from stoplab_trainers.model.jepa import Jepa, build_model
from stoplab_trainers.model.predictor import Predictor
from stoplab_trainers.objective import objective_of
from stoplab_trainers.randomness import Noise, draw_noise
from support_runs import tiny

NO_NOISE = Noise(None, None)


class Case(NamedTuple):
    """One batch and the model that sees it."""

    spec: RunSpec
    model: Jepa
    images: Tensor
    masks: TensorMasks
    noise: Noise

    def predictions(self) -> Tensor:
        """The student's forward pass."""
        predicted: Tensor = self.model(self.images, self.masks, self.noise)
        return predicted

    def loss(self) -> Tensor:
        """The training loss, against the student's own copy where an encoder makes the targets."""
        objective = objective_of(self.spec)
        target = objective.target(self.model.encoder)
        targets = objective.targets(target, self.images, self.masks)
        return objective.loss(self.predictions(), targets)

    def gradients(self) -> dict[str, Tensor | None]:
        """Gradient of the loss by parameter name."""
        self.model.zero_grad(set_to_none=True)
        self.loss().backward()  # type: ignore[no-untyped-call]
        return {name: parameter.grad for name, parameter in self.model.named_parameters()}


def case(batch: int = 4, step: int = 0, **changes: Any) -> Case:
    """A batch of `tiny` with its masks and noise; keyword arguments as there."""
    spec = tiny(**changes)
    rows = slice(0, batch)
    masks = draw_masks(spec, step, rows)
    shape = (masks.context.shape[1], *masks.targets.shape[1:])
    noise = draw_noise(spec, step, rows, *shape, "cpu")
    size = spec.data.image_size
    images = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(step))
    return Case(spec, build_model(spec), images, masks, noise)


def predictor(seed: int = 0, **positions: Any) -> Predictor:
    """A predictor of width 8 behind an encoder of width 12, on a 4 x 4 grid, random weights."""
    spec = tiny(**{f"positions__{name}": value for name, value in positions.items()})
    made = Predictor(spec.positions, encoder_width=12, width=8, depth=2, heads=2, grid=4)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(made.named_parameters()):
            if parameter.requires_grad:
                around = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.copy_(around + 0.3 * torch.randn(parameter.shape, generator=generator))
    return made


def inputs(
    batch: int = 2, blocks: int = 3, context: int = 5, target: int = 3, seed: int = 0
) -> tuple[Tensor, TensorMasks, Noise]:
    """Encoder features, masks and unit noise for `predictor`."""
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(16, generator=generator) for _ in range(batch)])
    targets = torch.stack([orders[:, context + i :][:, :target] for i in range(blocks)], dim=1)
    masks = TensorMasks(orders[:, :context].sort().values, targets.sort().values)
    features = torch.randn(batch, context, 12, generator=generator)
    unit = torch.randn(batch, blocks, target, 12, generator=generator)
    return features, masks, Noise(unit, torch.randn(batch, context, 12, generator=generator))
