"""Workers that train one run, in processes of their own, and take steps when they are told."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import multiprocessing

from stoplab_platform.specs import RunSpec, override, parse
from stoplab_trainers.cluster import connected
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.loop import Run, World, steps

SPEC: dict[str, Any] = {
    "kind": "pretrain",
    "name": "bench",
    "positions": {"kind": "deterministic"},
    "model": {
        "encoder": "custom", "width": 192, "depth": 3, "heads": 3, "patch_size": 8,
        "predictor": {"width": 96, "depth": 2},
    },
    "masking": {"kind": "multiblock", "min_keep": 4},
    "data": {"train": "digits", "image_size": 96},
    "optim": {"epochs": 600, "batch_size": 16},
    "evals": [],
}  # fmt: skip
QUICK = {"model.depth": 1, "model.predictor.depth": 1, "optim.batch_size": 8}
STEPS, QUICK_STEPS = 3, 2
"""Of each turn."""
ROUNDS, QUICK_ROUNDS = 8, 3
START_S = 300.0


@dataclass
class Team:
    """Lines to the workers, and the seconds of steps that they have told so far."""

    lines: list[Connection] = field(default_factory=list)
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    """Of all steps, as the first worker has them: the mean over all."""

    def step(self, count: int) -> None:
        """So many steps of all; the median of rank 0's counts."""
        for line in self.lines:
            line.send(count)
        told = [line.recv() for line in self.lines]
        self.seconds += statistics.median(seconds for seconds, _ in told[0])
        self.losses += [loss for _, loss in told[0]]


def obey(address: str, spec: dict[str, Any], rank: int, size: int, threads: int) -> None:
    """A worker: takes as many steps as it hears, answers seconds and losses; ends at 0."""
    torch.set_num_threads(threads)
    folder = Path(address).parent
    if size > 1:
        store = dist.FileStore(f"{address}.store", size)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    shards = ShardSet.open("digits", folder)
    feed = steps(Run(parse(RunSpec, spec), shards, World(rank, size)))
    with Client(address) as line:
        line.send(rank)
        for count in iter(line.recv, 0):
            done = [next(feed) for _ in range(count)]
            line.send([(one.seconds, one.metrics["train/loss"]) for one in done])
    feed.close()
    if size > 1:
        dist.destroy_process_group()


@contextmanager
def plain(folder: Path, name: str, quick: bool, workers: int, threads: int) -> Iterator[Team]:
    """Processes and nothing else."""
    with ExitStack() as opened:
        listener = opened.enter_context(Listener(str(folder / name)))
        spawning = multiprocessing.get_context("spawn")
        team = []
        for rank in range(workers):
            args = (listener.address, spec(quick), rank, workers, threads)
            process = spawning.Process(target=obey, args=args, daemon=True)
            process.start()
            opened.callback(process.join, 60)
            team.append(process)
        yield opened.enter_context(_gathered(listener, workers, team[0].is_alive))


@contextmanager
def under_ray_train(folder: Path, name: str, quick: bool, threads: int) -> Iterator[Team]:
    """One worker of a TorchTrainer, set up as a run's workers are."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.cloudpickle.register_pickle_by_value(__import__(__name__))
    with ExitStack() as opened:
        listener = opened.enter_context(Listener(str(folder / name)))
        os.environ.setdefault("STOPLAB_HOME", str(folder))  # workers want an absolute one
        opened.enter_context(connected())
        told = {"address": listener.address, "spec": spec(quick), "threads": threads}
        trainer = TorchTrainer(
            lambda config: obey(rank=0, size=1, **config),
            train_loop_config=told,
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
            torch_config=TorchConfig(backend="gloo"),
            run_config=RunConfig(name=name, storage_path=str(folder / "ray")),
        )
        fit = threading.Thread(target=trainer.fit, daemon=True)
        fit.start()
        opened.callback(fit.join, 60)
        yield opened.enter_context(_gathered(listener, 1, fit.is_alive))


def spec(quick: bool) -> dict[str, Any]:
    """Of both sides."""
    return override(SPEC, QUICK if quick else {})


@contextmanager
def _gathered(listener: Listener, workers: int, alive: Callable[[], bool]) -> Iterator[Team]:
    """A team once all are there; they are sent home afterwards."""
    lines = [_accepted(listener, alive) for _ in range(workers)]
    by_rank = {line.recv(): line for line in lines}
    team = Team([by_rank[rank] for rank in range(workers)])
    try:
        yield team
    finally:
        for line in team.lines:
            line.send(0)
            line.close()


def _accepted(listener: Listener, alive: Callable[[], bool]) -> Connection:
    """The next worker's line; RuntimeError where none will come."""
    listener._listener._socket.settimeout(1)  # type: ignore[attr-defined]
    deadline = time.monotonic() + START_S
    while alive() and time.monotonic() < deadline:
        try:
            return listener.accept()
        except TimeoutError:
            continue
    raise RuntimeError("a worker did not start")
