"""The loop: plain torch, one rank's view of one pretraining run.

`Run` holds everything that a checkpoint must hold, `steps` is a generator of `StepReport`,
`train` drains it past the hooks. What one step is lies in `step`, its numbers in `measure`. Every
random draw is a function of the step, so there is no generator state to save.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stoplab_platform.specs import RunSpec
from stoplab_platform.specs.kinds import PluginSpec
from stoplab_trainers.data.bad import BadSamples
from stoplab_trainers.data.loader import Batch, batches
from stoplab_trainers.data.plan import Plan, share
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.graphs import Graphs
from stoplab_trainers.hardware import compiles
from stoplab_trainers.measure import Pace, measure
from stoplab_trainers.model.jepa import Jepa
from stoplab_trainers.objective import objective_of
from stoplab_trainers.optim import Schedules, build_optimizer
from stoplab_trainers.pairing import PairingRecord
from stoplab_trainers.parallel import (
    blocks,
    distributed,
    fill_model,
    fill_optimizer,
    gathered,
    outside,
)
from stoplab_trainers.step import rehearse, train_step

T = TypeVar("T")

BLOCK_KINDS = 32
"""Compiled versions of a block: of encoder, predictor and target, last ones, evaluations' sizes."""
DENSE_STEPS = 50  # a run's start is logged step by step: that is where it goes wrong


@dataclass(frozen=True)
class World:
    """Who this process is among the workers, and where it computes."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def from_first(self, value: T) -> T:
        """Rank 0's ``value`` on every rank; all call."""
        told = [value]
        if self.size > 1:
            dist.broadcast_object_list(told, src=0, device=self.device)
        return told[0]


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
        self.num_parts = spec.compute.parts(optim.batch_size, self.world.size)
        """Parts that this rank's images of a step are computed in."""
        self.objective = objective_of(spec)
        self.model: Jepa = self.objective.build(spec).to(self.world.device)
        self.target = self.objective.target(self.model.encoder)
        self.record = PairingRecord(self.model.state_dict())
        self.finite = torch.ones((), dtype=torch.bool, device=self.world.device)
        """False once a step's loss or gradient was no number."""
        self.checked = 0
        """The last step after which all losses and gradients were known to be numbers."""
        self.student = self._prepared()
        self.weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        """What is trained; under `fsdp` this rank's shards of it."""
        self.optimizer = build_optimizer(self.model, optim)
        self.schedules = Schedules(optim, self.plan.steps_per_epoch)
        self.images: Tensor | None = None  # the last ones seen, whose memory the next ones take
        self.graphs = Graphs(self.weights) if self._takes_graphs() else None
        self.step = 0
        end = (until_epoch or optim.epochs) * self.plan.steps_per_epoch
        self.last_step = min(end, self.total_steps)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, which its schedules span; it may be left at `last_step`."""
        return self.schedules.total_steps

    @property
    def averages(self) -> bool:
        """Whether the target is a moving average, and not the student's encoder itself."""
        return self.target is not self.model.encoder

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, but for the spec and the data.

        Whole tensors under every strategy; all ranks call, and what lies in shards has rank 0.
        """
        kept = self.world.rank == 0
        state = {
            "model": gathered(self.model.state_dict(), kept),
            "target": self.target.state_dict(),
            "optimizer": gathered(self.optimizer.state_dict(), kept),
            "record": self.record.state(),
        }
        outside(self.student)
        return state

    def load(self, step: int, state: Mapping[str, Any]) -> None:
        """Go on after ``step`` steps from a `state`, whatever the strategy it was made under."""
        fill_model(self.model, state["model"])
        self.target.load_state_dict(state["target"])
        fill_optimizer(self.optimizer, state["optimizer"])
        self.record.load(state["record"])
        self.step = self.checked = step

    def begin_from(self, model: Jepa, target: nn.Module) -> None:
        """Take other first weights than the seed's."""
        self.record = PairingRecord(model.state_dict())
        fill_model(self.model, model.state_dict())
        if self.averages:
            self.target.load_state_dict(target.state_dict())

    def _prepared(self) -> nn.Module:
        """What the step calls: blocks recompute and are compiled, and ranks share them."""
        spec, world = self.spec, self.world
        for block in blocks(self.model):
            block.recomputes = spec.compute.activation_checkpointing
        if compiles(spec, world.device):
            torch._dynamo.config.recompile_limit = BLOCK_KINDS
            for block in blocks(self.model):
                block.compile(dynamic=True)
            if self.averages:  # it sees whole images: but for the last block, one shape
                for block in blocks(self.target):
                    block.compile()
        return distributed(self.model, spec.compute.strategy, world.size, world.device)

    def _takes_graphs(self) -> bool:
        """One worker's passes on a GPU do; a plug-in's may do what a graph cannot hold."""
        spec, device = self.spec, self.world.device
        foreign = any(isinstance(part, PluginSpec) for part in (spec.objective, spec.positions))
        alone = device.type == "cuda" and self.world.size == 1
        return alone and compiles(spec, device) and not foreign


def train(run: Run, hooks: Sequence[Callable[[Run, StepReport], None]]) -> None:
    """Run to the end; after each step every hook sees the run and the step's report."""
    for report in steps(run):
        for hook in hooks:
            hook(run, report)
    run.graphs = None  # what follows may need their memory


def steps(run: Run) -> Iterator[StepReport]:
    """One report a step, from the run's present step to its last."""
    pace = Pace(run)
    begin = time.perf_counter()
    for number, batch in enumerate(_feed(run)):
        if number == 0:
            rehearse(run, batch)
        run.step += 1
        done = train_step(run, batch)
        metrics = measure(run, done) if _is_logged(run) else {}
        seconds = time.perf_counter() - begin
        pace.add(done.masks, seconds)
        del done  # its targets would stay until the next step has its own
        if metrics:
            metrics |= pace.taken()
        per_epoch = run.plan.steps_per_epoch
        yield StepReport(
            step=run.step,
            steps=run.last_step,
            epoch=(run.step - 1) // per_epoch,
            ends_epoch=run.step % per_epoch == 0,
            seconds=seconds,
            metrics=metrics,
        )
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
        pin_memory=run.world.device.type == "cuda",
    )


def _is_logged(run: Run) -> bool:
    every = run.spec.tracking.log_every_steps
    return run.step <= DENSE_STEPS or run.step % every == 0 or run.step == run.last_step
