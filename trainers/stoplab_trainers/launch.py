"""The loop under Ray Train: one worker runs in place, several under a TorchTrainer.

Our own checkpoints are the only truth to resume from, so nothing goes through Train's
`report()`: its pace is the controller's (seconds), and what it knows after a crash may be older.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from stoplab_platform import logs
from stoplab_platform.errors import Fenced, StoplabError, Stopped
from stoplab_platform.paths import RunFolder, read_json, read_lines, write_json
from stoplab_platform.redaction import redacted
from stoplab_platform.specs import RunSpec
from stoplab_platform.specs.run import ComputeSpec
from stoplab_platform.tracking import RunIdentity
from stoplab_trainers import checkpoint
from stoplab_trainers.cluster import connected
from stoplab_trainers.hooks import OnScores, Progress
from stoplab_trainers.loop import World
from stoplab_trainers.rank import run_rank
from stoplab_trainers.resuming import Leg
from stoplab_trainers.summary import Summary, summary_of

log = logging.getLogger("stoplab")

# Errors of the input or of our own code: they would only repeat themselves.
HOPELESS = (StoplabError, ValueError, TypeError, LookupError, AssertionError)
PATIENCE_S = 6 * 3600  # workers wait for the first one in an all-reduce while it evaluates
WATCH_S = 3.0  # seconds between two looks at the workers' progress
SCORES_S = 0.2  # seconds between two looks at their scores, where somebody decides by them


class TrainingFailed(StoplabError):
    """A worker ended with an error that a restart would not cure."""


def execute(
    spec: RunSpec,
    folder: RunFolder,
    identity: RunIdentity,
    *,
    stop_file: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_scores: OnScores | None = None,
    leg: Leg | None = None,
) -> Summary:
    """Run a spec to its end, from its last checkpoint if there is one.

    A finished run's folder gives its summary at once. Raises `Stopped` when the stop file, or the
    run's own one (`RunFolder.prune`), appears. ``on_scores`` hears of scheduled evaluations: a
    single worker waits for it, several go on meanwhile. ``leg``: only a part of the run.
    """
    finished = summary_of(folder)
    if finished is not None:
        return finished
    checkpoint.note_place(spec, folder, identity.job_id)
    if spec.compute.workers > 1:
        with _watched(folder, on_progress, on_scores):
            return _under_ray_train(spec, folder, identity, stop_file, leg)
    with rank_log(folder, 0):
        world = World(device=device_of(spec.compute))
        summary = run_rank(
            spec,
            folder,
            identity,
            world,
            stop_file=stop_file,
            on_progress=on_progress,
            on_scores=on_scores,
            leg=leg,
        )
    assert summary is not None
    return summary


@contextmanager
def rank_log(folder: RunFolder, rank: int) -> Iterator[None]:
    """Write the block's log lines into the rank's own file as well."""
    folder.logs.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder.rank_log(rank))
    handler.setFormatter(logs.Plain("%(asctime)s %(message)s"))
    root = logging.getLogger("stoplab")
    root.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield
    except Exception as error:
        if not isinstance(error, Stopped | Fenced):
            log.exception("rank %d failed", rank)
        raise
    finally:
        root.removeHandler(handler)
        handler.close()


def device_of(compute: ComputeSpec) -> torch.device:
    """Where a process computes; ValueError where the GPU it asks for is not there."""
    if compute.gpus_per_worker == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("compute.gpus_per_worker asks for a GPU, and torch sees none here")
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def _watched(
    folder: RunFolder,
    on_progress: Callable[[Progress], None] | None,
    on_scores: OnScores | None,
) -> Iterator[None]:
    """Tell the driver's log, and whoever asked, how far the workers of the block are."""
    over = threading.Event()
    known = len(read_lines(folder.scores))

    def watch() -> None:
        nonlocal known
        told, spoke_at = None, float("-inf")
        while not over.wait(SCORES_S if on_scores else WATCH_S):
            if on_scores:
                fresh = read_lines(folder.scores)[known:]
                known += len(fresh)
                for line in fresh:
                    on_scores(line["epoch"], line["values"])
            progress = read_json(folder.progress)
            if progress is None or progress == told or time.monotonic() - spoke_at < WATCH_S:
                continue
            told, spoke_at = progress, time.monotonic()
            log.info(
                "step %(step)d/%(steps)d  epoch %(epoch)d  %(samples_per_s)s images/s", progress
            )
            if on_progress:
                on_progress(progress)

    thread = threading.Thread(target=watch, name="stoplab-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _under_ray_train(
    spec: RunSpec,
    folder: RunFolder,
    identity: RunIdentity,
    stop_file: Path | None,
    leg: Leg | None,
) -> Summary:
    # Ray Train costs seconds to import, and GPU machines without Ray run the loop alone.
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    compute = spec.compute
    on_gpu = compute.gpus_per_worker > 0
    resources: dict[str, float] = {"CPU": compute.cpus_per_worker}
    if on_gpu:
        resources["GPU"] = compute.gpus_per_worker
    _end_note(folder).unlink(missing_ok=True)
    with connected():
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "spec": spec.plain(),
                "folder": str(folder.root),
                "identity": dataclasses.asdict(identity),
                "stop_file": str(stop_file) if stop_file else None,
                "leg": leg,
            },
            scaling_config=ScalingConfig(
                num_workers=compute.workers, use_gpu=on_gpu, resources_per_worker=resources
            ),
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo", timeout_s=PATIENCE_S),
            run_config=RunConfig(
                # A name of its own: Train would take a used one for a run to go on with.
                name=f"{folder.root.name}-{uuid4().hex[:8]}",
                storage_path=str(folder.root / "ray"),
                failure_config=FailureConfig(max_failures=compute.max_failures),
            ),
        )
        trainer.fit()
    return _outcome(folder)


def _outcome(folder: RunFolder) -> Summary:
    note = read_json(_end_note(folder)) or {}
    if "stopped" in note:
        raise Stopped(note["stopped"], note["step"])
    if "failed" in note:
        raise TrainingFailed(note["failed"])
    summary = summary_of(folder)
    if summary is None:
        raise TrainingFailed(f"the workers ended without a summary in {folder.root}")
    return summary


def _worker(config: dict[str, Any]) -> None:
    """One rank's process under Ray Train."""
    from ray.train import get_context

    rank = get_context().get_world_rank()
    folder = RunFolder(Path(config["folder"]))
    if _end_note(folder).exists():
        return  # a restart after an error that would only repeat itself
    _own_output(folder, rank)
    log.propagate = False  # Ray's own handler would write each line a second time
    spec = RunSpec.model_validate(config["spec"])
    world = World(rank, get_context().get_world_size(), device_of(spec.compute))
    stop_file = Path(config["stop_file"]) if config["stop_file"] else None
    with rank_log(folder, rank):
        try:
            identity = RunIdentity(**config["identity"])
            run_rank(spec, folder, identity, world, stop_file=stop_file, leg=config["leg"])
        except Stopped as stop:
            if rank == 0:
                write_json(_end_note(folder), {"stopped": stop.intent, "step": stop.step})
        except Fenced as error:
            log.warning("%s", error)  # and no note: the folder is another's
        except HOPELESS as error:
            write_json(_end_note(folder), {"failed": redacted(f"{type(error).__name__}: {error}")})
            raise


def _end_note(folder: RunFolder) -> Path:
    """Where workers say why they ended, for the driver."""
    return folder.root / "end.json"


def _own_output(folder: RunFolder, rank: int) -> None:
    """Send all that this process prints, native crashes too, to the rank's file.

    Ray's own way to the driver drops and merges lines.
    """
    folder.logs.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    with folder.rank_log(rank).open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
