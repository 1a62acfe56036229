"""Where noised positions land: the patch whose table position is nearest to psi_j + A n.

The length of the noise alone says little: most of its directions point away from the table, and
do not bring it nearer to another patch.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from stoplab_platform.specs import RunSpec
from stoplab_trainers.model.jepa import Jepa
from stoplab_trainers.randomness import Noise, draw_noise

MOST_PATCHES = 64  # that are moved for `landing_stats`, spread over the grid
DRAWS = 32  # of each
AT_ONCE = 2048  # noised positions whose distances to all patches are held at a time


@torch.no_grad()
def landing_stats(model: Jepa, spec: RunSpec) -> dict[str, float]:
    """How far noised positions land from their patch; nothing without noise.

    - ``stop/landing_patches``: mean distance on the grid to the nearest patch (patches).
    - ``stop/landing_stays``: share of draws whose nearest patch is their own (fraction).
    """
    if model.predictor.noise.noise_std == 0:
        return {}
    patches = spec.grid**2
    at = torch.linspace(0, patches - 1, min(MOST_PATCHES, patches)).round().long()
    return summed_up(landing(model, spec, at, DRAWS), at)


@torch.no_grad()
def landing(
    model: Jepa, spec: RunSpec, at: Int64[Tensor, " n"], draws: int
) -> Float[Tensor, "n patch"]:
    """For each patch of ``at`` the share of ``draws`` in which each patch is nearest."""
    table = model.predictor.table
    placed = table[at.to(table.device)] + displacements(model, spec, len(at), draws)
    parts = torch.split(placed.flatten(0, 1), AT_ONCE)  # batches of cdist would each get a table
    nearest = torch.cat([torch.cdist(part, table).argmin(dim=-1) for part in parts])
    nearest = nearest.reshape(draws, len(at)).T
    counts = torch.zeros(len(at), len(table), device=table.device)
    counts.scatter_add_(1, nearest, torch.ones_like(nearest, dtype=counts.dtype))
    return (counts / draws).cpu()


def displacements(
    model: Jepa, spec: RunSpec, count: int, draws: int
) -> Float[Tensor, "draw n width"]:
    """Draws of the noise A n of ``count`` tokens, the same whenever they are drawn."""
    predictor = model.predictor
    device = predictor.embed.weight.device
    noise = noise_of(spec, 0, slice(0, draws), count, 1, count, device)
    unit = noise.context if noise.masked is None else noise.masked[:, 0]
    assert unit is not None, "positions without noise are not moved"
    moved: Tensor = predictor.noise(unit, predictor.embed.weight)
    return moved


def noise_of(
    spec: RunSpec,
    step: int,
    rows: slice,
    num_context: int,
    num_blocks: int,
    num_target: int,
    device: torch.device,
) -> Noise:
    """Unit noise by the law and the stream of training at ``step``, of any number of rows."""
    optim = spec.optim.model_copy(update={"batch_size": rows.stop})
    wide = spec.model_copy(update={"optim": optim})
    return draw_noise(wide, step, rows, num_context, num_blocks, num_target, device)


def summed_up(shares: Float[Tensor, "n patch"], at: Int64[Tensor, " n"]) -> dict[str, float]:
    """`landing_stats` of where patches ``at`` landed."""
    far = grid_distances(at, shares.shape[1])
    return {
        "stop/landing_patches": float((shares * far).sum(dim=1).mean()),
        "stop/landing_stays": float(shares.gather(1, at[:, None]).mean()),
    }


def grid_distances(at: Int64[Tensor, " n"], patches: int) -> Float[Tensor, "n patch"]:
    """Euclidean distance on the grid from each patch of ``at`` to all (patches)."""
    grid = math.isqrt(patches)
    every = torch.arange(patches)
    down = (at // grid)[:, None] - (every // grid)[None]
    across = (at % grid)[:, None] - (every % grid)[None]
    return torch.hypot(down.float(), across.float())
