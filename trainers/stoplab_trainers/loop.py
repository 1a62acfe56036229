"""The loop: plain torch, one rank's view of one pretraining run.

`Run` holds everything that a checkpoint must hold, `steps` is a generator of `StepReport`,
`train` drains it past the hooks. One step is: schedules, forward, backward, optimiser, EMA
(ijepa:src/train.py@52c1ae9 has the same order). Every random draw is a function of the step, so
there is no generator state to save.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stoplab_platform.errors import StoplabError
from stoplab_platform.specs import RunSpec
from stoplab_trainers.data.bad import BadSamples
from stoplab_trainers.data.loader import Batch, batches, normalise
from stoplab_trainers.data.plan import Plan, share
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.diagnostics.noise import position_stats
from stoplab_trainers.loss import penalty
from stoplab_trainers.masking import TensorMasks, draw_masks
from stoplab_trainers.model.jepa import Jepa
from stoplab_trainers.objective import objective_of
from stoplab_trainers.optim import Schedules, build_optimizer, set_step, update_ema
from stoplab_trainers.pairing import PairingRecord
from stoplab_trainers.randomness import draw_noise

DENSE_STEPS = 50  # a run's start is logged step by step: that is where it goes wrong


class Diverged(StoplabError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class World:
    """Who this process is among the workers, and where it computes."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True)
class StepReport:
    """What one step did; `metrics` is filled at the steps that are logged."""

    step: int
    """Steps done, from 1."""
    steps: int
    """Steps until the run ends."""
    epoch: int
    """Epoch the step belongs to, from 0."""
    ends_epoch: bool
    """True at the last step of an epoch."""
    seconds: float
    """Time of this step, without the hooks."""
    metrics: Mapping[str, float]


class Run:
    """One rank's training state: weights, EMA target, optimiser, step."""

    def __init__(
        self,
        spec: RunSpec,
        shards: ShardSet,
        world: World | None = None,
        until_epoch: int | None = None,
    ) -> None:
        self.spec, self.shards, self.world = spec, shards, world or World()
        optim = spec.optim
        self.plan = Plan(
            shards.counts, optim.batch_size, spec.seed, spec.data.shuffle.window_shards
        )
        self.bad = BadSamples(shards, spec.data.max_bad_samples, spec.seed)
        self.rows = share(optim.batch_size, self.world.rank, self.world.size)
        self.objective = objective_of(spec)
        self.model: Jepa = self.objective.build(spec).to(self.world.device)
        self.target = self.objective.target(self.model.encoder)
        self.record = PairingRecord(self.model.state_dict())
        self.optimizer = build_optimizer(self.model, optim)
        self.schedules = Schedules(optim, self.plan.steps_per_epoch)
        self.images: Tensor | None = None  # the last step's, whose memory the next one takes
        self.step = 0
        end = (until_epoch or optim.epochs) * self.plan.steps_per_epoch
        self.last_step = min(end, self.total_steps)
        self.student = self._wrapped()

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, which its schedules span; it may be left at `last_step`."""
        return self.schedules.total_steps

    @property
    def averages(self) -> bool:
        """Whether the target is a moving average, and not the student's encoder itself."""
        return self.target is not self.model.encoder

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, but for the spec and the data."""
        return {
            "model": self.model.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "record": self.record.state(),
        }

    def load(self, step: int, state: Mapping[str, Any]) -> None:
        """Go on after ``step`` steps from a `state`."""
        self.model.load_state_dict(state["model"])
        self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.record.load(state["record"])
        self.step = step

    def _wrapped(self) -> nn.Module:
        if _compiles(self.spec, self.world.device):
            for block in (*self.model.encoder.vit.blocks, *self.model.predictor.blocks):
                block.compile(dynamic=True)
        if self.world.size == 1:
            return self.model
        devices = [self.world.device] if self.world.device.type == "cuda" else None
        return DistributedDataParallel(self.model, device_ids=devices, broadcast_buffers=False)


def train(run: Run, hooks: Sequence[Callable[[Run, StepReport], None]]) -> None:
    """Run to the end; after each step every hook sees the run and the step's report."""
    for report in steps(run):
        for hook in hooks:
            hook(run, report)


def steps(run: Run) -> Iterator[StepReport]:
    """One report a step, from the run's present step to its last."""
    pending: list[float] = []
    begin = time.perf_counter()
    for batch in _feed(run):
        run.step += 1
        done = _train_step(run, batch)
        metrics = _measure(run, done) if _is_logged(run) else {}
        pending.append(time.perf_counter() - begin)
        if metrics:
            metrics["train/samples_per_s"] = run.spec.optim.batch_size * len(pending) / sum(pending)
        per_epoch = run.plan.steps_per_epoch
        yield StepReport(
            step=run.step,
            steps=run.last_step,
            epoch=(run.step - 1) // per_epoch,
            ends_epoch=run.step % per_epoch == 0,
            seconds=pending[-1],
            metrics=metrics,
        )
        if metrics:
            pending = []
        begin = time.perf_counter()  # what the hooks did is not training time


def _feed(run: Run) -> Iterator[Batch]:
    return batches(
        run.shards,
        run.plan,
        run.spec.data,
        seed=run.spec.seed,
        rank=run.world.rank,
        world=run.world.size,
        start_step=run.step,
        stop_step=run.last_step,
        bad=run.bad,
    )


class _Done(NamedTuple):
    """What a step leaves to be measured."""

    loss: Float[Tensor, ""]
    penalty: Float[Tensor, ""] | None
    targets: Float[Tensor, "b block n d"]
    masks: TensorMasks
    gradient_norm: Float[Tensor, ""]


def _train_step(run: Run, batch: Batch) -> _Done:
    spec, device = run.spec, run.world.device
    set_step(run.optimizer, run.schedules, run.step)
    images = run.images = normalise(batch.images.to(device, non_blocking=True), run.images)
    masks = draw_masks(spec, batch.step, run.rows, device)
    run.record.add(run, batch, masks)
    _, num_context = masks.context.shape
    _, num_blocks, num_target = masks.targets.shape
    noise = draw_noise(spec, batch.step, run.rows, num_context, num_blocks, num_target, device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision(spec, device) == "bf16"):
        targets = run.objective.targets(run.target, images, masks)
        predictions = run.student(images, masks, noise)
    loss = run.objective.loss(predictions, targets)
    extra = None
    if spec.optim.a_penalty:
        extra = penalty(run.model.predictor.embed.weight, spec.optim.a_penalty)
    run.optimizer.zero_grad(set_to_none=True)
    (loss if extra is None else loss + extra).backward()  # type: ignore[no-untyped-call]
    gradient_norm = nn.utils.clip_grad_norm_(
        run.model.parameters(), spec.optim.clip_grad or math.inf, foreach=True
    )
    run.optimizer.step()
    if run.averages:
        update_ema(run.target, run.model.encoder, run.schedules.momentum(run.step))
    extra = None if extra is None else extra.detach()
    return _Done(loss.detach(), extra, targets, masks, gradient_norm)


def precision(spec: RunSpec, device: torch.device) -> str:
    """`fp32` or `bf16`: by hardware unless the spec says so (bf16 loses on most CPUs)."""
    if spec.compute.precision != "auto":
        return spec.compute.precision
    return "bf16" if device.type == "cuda" else "fp32"


def _compiles(spec: RunSpec, device: torch.device) -> bool:
    return spec.compute.compile == "on" or (
        spec.compute.compile == "auto" and device.type == "cuda"
    )


def _is_logged(run: Run) -> bool:
    every = run.spec.tracking.log_every_steps
    return run.step <= DENSE_STEPS or run.step % every == 0 or run.step == run.last_step


def _measure(run: Run, done: _Done) -> dict[str, float]:
    """Numbers of a logged step; the loss is the mean over all workers, without the penalty."""
    loss, masks = done.loss, done.masks
    if run.world.size > 1:
        dist.all_reduce(loss, op=dist.ReduceOp.SUM)
        loss = loss / run.world.size
    value = float(loss)
    if not math.isfinite(value):
        raise Diverged(f"the loss is {value} at step {run.step}")
    flat = done.targets.flatten(0, 2).float() if run.objective.in_features else None
    patches = run.spec.grid**2
    metrics = {
        "train/loss": value,
        "train/lr": run.schedules.lr(run.step),
        "train/weight_decay": run.schedules.weight_decay(run.step),
        "train/grad_norm": float(done.gradient_norm),
        "mask/context_tokens": float(masks.context.shape[1]),
        "mask/effective_ratio": float(_covered(masks, patches).float().mean()),
        **position_stats(run.model, run.spec, run.model.seen),
    }
    if run.averages:
        metrics["train/ema"] = run.schedules.momentum(run.step)
    if flat is not None:
        metrics["collapse/feature_std"] = float(flat.std(dim=0).mean())
    if done.penalty is not None:
        metrics["train/a_penalty"] = float(done.penalty)
    return metrics


def _covered(masks: TensorMasks, patches: int) -> Bool[Tensor, "b n"]:
    covered = torch.zeros(
        len(masks.targets), patches, dtype=torch.bool, device=masks.targets.device
    )
    return covered.scatter_(1, masks.targets.flatten(1), True)
