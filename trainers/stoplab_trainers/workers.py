"""A run's workers under Ray Train: one group of a fixed size, from its start to its end.

Our own checkpoints are the only truth to resume from, so nothing goes through Train's
`report()`: its pace is the controller's (seconds), and what it knows after a crash may be older.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

from stoplab_platform.errors import Fenced, StoplabError, Stopped
from stoplab_platform.files import read_json, write_json
from stoplab_platform.paths import RunFolder
from stoplab_platform.redaction import scrubbed
from stoplab_platform.settings import Settings
from stoplab_platform.specs import RunSpec
from stoplab_platform.tracking import RunIdentity
from stoplab_trainers.hardware import device_of
from stoplab_trainers.loop import World
from stoplab_trainers.notice import Draining
from stoplab_trainers.rank import rank_log, run_rank
from stoplab_trainers.resuming import Leg
from stoplab_trainers.roll import fence, hung
from stoplab_trainers.room import resources_of
from stoplab_trainers.summary import Summary, summary_of
from stoplab_trainers.watchdog import Hung, Watchdog

log = logging.getLogger("stoplab")

# Errors of the input or of our own code: they would only repeat themselves.
HOPELESS = (StoplabError, ValueError, TypeError, LookupError, AssertionError)
PATIENCE_S = 6 * 3600  # workers wait for the first one in an all-reduce while it evaluates


class TrainingFailed(StoplabError):
    """A worker ended with an error that a restart would not cure."""


class NoRoom(StoplabError):
    """Workers found no place in the cluster in time."""


@dataclasses.dataclass(frozen=True)
class Group:
    """What the workers of a run need to know."""

    spec: RunSpec
    folder: RunFolder
    identity: RunIdentity
    stop_file: Path | None
    leg: Leg | None

    def train(self, count: int, max_failures: int, *, waits: bool = True) -> Summary:
        """Train on so many workers; Ray Train restarts them so often itself.

        ``waits``: for a place for all of them, without end; else `NoRoom` after a minute. Raises
        `Stopped`, `TrainingFailed` where it is hopeless, and what Ray Train raises.
        """
        # Ray Train costs seconds to import, and GPU machines without Ray run the loop alone.
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
        from ray.train.v2.api.exceptions import ControllerError, TrainingFailedError

        on_gpu = self.spec.compute.gpus_per_worker > 0
        for left in (_end_note(self.folder), self.folder.leave, self.folder.hung):
            left.unlink(missing_ok=True)
        trainer = TorchTrainer(
            _worker,
            train_loop_config={
                "spec": self.spec.plain(),
                "folder": str(self.folder.root),
                "identity": dataclasses.asdict(self.identity),
                "stop_file": str(self.stop_file) if self.stop_file else None,
                "leg": self.leg,
            },
            scaling_config=ScalingConfig(
                num_workers=count,
                use_gpu=on_gpu,
                resources_per_worker=resources_of(self.spec.compute),
            ),
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo", timeout_s=PATIENCE_S),
            run_config=RunConfig(
                # A name of its own: Train would take a used one for a run to go on with.
                name=f"{self.folder.root.name}-{uuid4().hex[:8]}",
                storage_path=str(self.folder.root / "ray"),
                # The first version's FailureConfig, which type checkers see, counts no preemptions.
                failure_config=FailureConfig(  # type: ignore[call-arg]
                    max_failures=max_failures,
                    max_preemption_failures=-1 if max_failures else 0,
                    controller_failure_limit=-1 if waits else 0,
                ),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            self._check_owner()
            if (message := hung(self.folder)) is not None:
                raise Hung(message) from error
            failure = error.controller_failure if isinstance(error, ControllerError) else None
            if isinstance(failure, WorkerGroupStartupTimeoutError):
                raise NoRoom(f"{count} workers found no place: {failure}") from error
            if not _end_note(self.folder).exists():
                raise
        return self._outcome()

    def forget_places(self) -> None:
        """Before workers start: where earlier ones were."""
        for rank in range(self.spec.compute.workers):
            self.folder.place(rank).unlink(missing_ok=True)

    def has_begun(self, count: int) -> bool:
        """Whether so many workers have started."""
        return all(self.folder.place(rank).exists() for rank in range(count))

    def nodes(self, count: int) -> set[str]:
        """Ids of the nodes that the workers were last on."""
        told = (read_json(self.folder.place(rank)) for rank in range(count))
        return {str(place["node"]) for place in told if place}

    def _check_owner(self) -> None:
        """Fenced where the workers ended because a newer attempt has the folder."""
        if fence(Settings())():
            raise Fenced(f"a newer attempt owns the job's folder, {self.folder.root}")

    def _outcome(self) -> Summary:
        note = read_json(_end_note(self.folder)) or {}
        if "stopped" in note:
            raise Stopped(note["stopped"], note["step"])
        if "failed" in note:
            raise TrainingFailed(note["failed"])
        summary = summary_of(self.folder)
        if summary is None:
            self._check_owner()
            raise TrainingFailed(f"the workers ended without a summary in {self.folder.root}")
        return summary


def _worker(config: dict[str, Any]) -> None:
    """One rank's process under Ray Train."""
    import ray
    from ray.train import get_context

    rank = get_context().get_world_rank()
    folder = RunFolder(Path(config["folder"]))
    if _end_note(folder).exists():
        return  # a restart after an error that would only repeat itself
    _own_output(folder, rank)
    log.propagate = False  # Ray's own handler would write each line a second time
    write_json(folder.place(rank), {"node": ray.get_runtime_context().get_node_id()})
    spec = RunSpec.model_validate(config["spec"])
    world = World(rank, get_context().get_world_size(), device_of(spec.compute))
    stop_file = Path(config["stop_file"]) if config["stop_file"] else None
    # Ray Train counts local ranks by address, which several nodes may share: each rank listens.
    notice = Draining()
    identity = RunIdentity(**config["identity"])
    with rank_log(folder, rank):
        try:
            with Watchdog(folder, world, spec.compute.hang_timeout_s) as watchdog:
                ends = {"stop_file": stop_file, "leg": config["leg"], "notice": notice}
                run_rank(spec, folder, identity, world, watchdog, **ends)
        except Stopped as stop:
            if rank == 0:
                write_json(_end_note(folder), {"stopped": stop.intent, "step": stop.step})
        except Fenced as error:
            log.warning("%s", error)  # and no note: the folder is another's
        except HOPELESS as error:
            write_json(_end_note(folder), {"failed": scrubbed(f"{type(error).__name__}: {error}")})
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
