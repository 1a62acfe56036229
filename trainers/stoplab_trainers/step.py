"""One training step: schedules, forward, backward, optimiser, moving average.

The order is that of ijepa:src/train.py@52c1ae9. Between logged steps the host waits for no GPU:
masks are drawn on the CPU, copies do not block, and whether loss and gradient are numbers is kept
there.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stoplab_trainers.data.loader import Batch, normalise
from stoplab_trainers.data.plan import share
from stoplab_trainers.hardware import precision
from stoplab_trainers.loss import penalty
from stoplab_trainers.masking import TensorMasks, draw_masks
from stoplab_trainers.optim import set_step, update_ema
from stoplab_trainers.parallel import full, gradients_summed, side_by_side
from stoplab_trainers.randomness import NoiseKeys, noise_keys, noise_of

if TYPE_CHECKING:  # the loop imports this module
    from stoplab_trainers.loop import Run


class Done(NamedTuple):
    """What a step leaves to be measured, on the device but for the masks."""

    loss: Float[Tensor, ""]
    """Mean over this rank's images, without the penalty."""
    penalty: Float[Tensor, ""] | None
    targets: list[Float[Tensor, "_ block n d"]]
    """Of each part that the step was computed in."""
    features: Float[Tensor, "_ k d"]
    """What the student's encoder made of the last part's context."""
    masks: TensorMasks
    """Of this rank's images, on the CPU."""
    gradient_norm: Float[Tensor, ""]


class _Part(NamedTuple):
    """What one forward and backward leaves."""

    loss: Float[Tensor, ""]
    penalty: Float[Tensor, ""] | None
    targets: Float[Tensor, "b block n d"]
    features: Float[Tensor, "b k d"]


def train_step(run: Run, batch: Batch) -> Done:
    """Train on one batch; `run.step` is this step's number already."""
    set_step(run.optimizer, run.schedules, run.step)
    masks = draw_masks(run.spec, batch.step, run.rows)
    run.record.add(run, batch, masks)
    run.optimizer.zero_grad(set_to_none=True)
    parts = [_accumulate(run, batch, masks, part) for part in range(run.num_parts)]
    gradient_norm = full(_clipped(run))
    run.optimizer.step()
    if run.averages:
        for pairs in side_by_side(run.student, run.target, run.model.encoder):
            update_ema(pairs, run.schedules.momentum(run.step))
    loss = torch.stack([part.loss for part in parts]).mean()
    # A gradient that is no number has broken the weights of all ranks; a loss, its own rank's.
    run.finite.logical_and_(loss.isfinite() & gradient_norm.isfinite())
    targets = [part.targets for part in parts]
    return Done(loss, parts[0].penalty, targets, parts[-1].features, masks, gradient_norm)


def _clipped(run: Run) -> Float[Tensor, ""]:
    """The norm of all gradients, before they are clipped where the spec says so."""
    grads = [weight.grad for weight in run.weights if weight.grad is not None]
    norm = nn.utils.get_total_norm(grads, foreach=True)
    if (most := run.spec.optim.clip_grad) is not None:
        nn.utils.clip_grads_with_norm_(run.weights, most, norm, foreach=True)
    return norm


def rehearse(run: Run, batch: Batch) -> None:
    """Forward and backward of a batch, which leave nothing, where ranks hold copies; all call.

    DDP orders its buckets by the first backward, and a sum of three ranks or more depends on the
    order: so the first step after a start adds up as it would in a run that goes on.
    """
    if isinstance(run.student, DistributedDataParallel) and run.world.size > 2:
        masks = draw_masks(run.spec, batch.step, run.rows)
        _accumulate(run, batch, masks, part=run.num_parts - 1)
        run.optimizer.zero_grad(set_to_none=True)


def _accumulate(run: Run, batch: Batch, masks: TensorMasks, part: int) -> _Part:
    """Add the gradient of one part of this rank's images; the last one sums over the ranks."""
    spec, device, num_parts = run.spec, run.world.device, run.num_parts
    own = share(len(batch.images), part, num_parts)
    rows = slice(run.rows.start + own.start, run.rows.start + own.stop)
    images = batch.images[own].to(device, non_blocking=True)
    keys = noise_keys(spec, batch.step, rows, device)
    given = images, *masks.rows(own).to(device), *keys
    if run.graphs is not None and run.graphs.take(given):
        return _Part(*cast(_Part, run.graphs(partial(_pass, run), given)))
    with gradients_summed(run.student, over_ranks=part == num_parts - 1):
        return _pass(run, *given)


def _pass(
    run: Run,
    pixels: UInt8[Tensor, "b 3 h w"],
    context: Int64[Tensor, "b k"],
    targets: Int64[Tensor, "b block n"],
    masked_keys: Int64[Tensor, " b"] | None,
    context_keys: Int64[Tensor, " b"] | None,
) -> _Part:
    """Forward and backward of some images, all of it on the device."""
    spec, device, masks = run.spec, run.world.device, TensorMasks(context, targets)
    _, num_blocks, num_target = targets.shape
    keys = NoiseKeys(masked_keys, context_keys)
    noise = noise_of(spec, keys, context.shape[1], num_blocks, num_target)
    images = run.images = normalise(pixels, run.images)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision(spec, device) == "bf16"):
        wanted = run.objective.targets(run.target, images, masks)
        predictions = run.student(images, masks, noise)
    loss = run.objective.loss(predictions, wanted)
    extra = None
    if spec.optim.a_penalty:
        extra = penalty(run.model.predictor.embed.weight, spec.optim.a_penalty)
    total = loss if extra is None else loss + extra
    (total / run.num_parts).backward()  # type: ignore[no-untyped-call]
    seen = run.model.seen
    del run.model.seen  # a graph writes over its own
    return _Part(loss.detach(), None if extra is None else extra.detach(), wanted, seen)
