"""Runs that were not trained, with checkpoints as if they had been, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stoplab_platform.files import write_atomic
from stoplab_platform.paths import JobFolder
from stoplab_platform.specs import RunSpec
from stoplab_trainers import checkpoint
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import build_model, target_of
from support_runs import tiny


def saved(home: Path, job: str = "j_1", cell: str = "run", **changes: Any) -> tuple[RunSpec, Any]:
    """A run's folder with a checkpoint whose student and target differ; its spec and state."""
    spec = tiny(**changes)
    run = JobFolder(home / "jobs" / job).run(cell)
    model = build_model(spec)
    state = {
        "model": model.state_dict(),
        "target": build_model(spec.model_copy(update={"seed": 9})).encoder.state_dict(),
    }
    write_atomic(run.spec, spec.to_yaml())
    checkpoint.save(run.checkpoints, step=5, tensors=state, identity={"run": "x"}, keep=1)
    return spec, state


def target(spec: RunSpec, state: Any) -> Encoder:
    """The EMA encoder of `saved`."""
    encoder = target_of(build_model(spec).encoder)
    encoder.load_state_dict(state["target"])
    return encoder
