"""A trained run as its checkpoint holds it: what is exported, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from stoplab_platform.errors import CheckpointError
from stoplab_platform.files import read_json
from stoplab_platform.paths import RunFolder
from stoplab_platform.references import Found
from stoplab_platform.specs import RunSpec, load_spec
from stoplab_platform.tracking import sent_run_id
from stoplab_trainers import checkpoint
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import Jepa
from stoplab_trainers.objective import objective_of
from stoplab_trainers.weights.names import Weights, encoder_theirs, renamed


@dataclass(frozen=True)
class Trained:
    """A run's weights at one step.

    Attributes:
        spec: what was run.
        folder: the run's.
        path: the checkpoint's, or its URL.
        step: steps that the weights have seen.
        model: the student.
        target: the EMA encoder, of MAE the student's own: what the probes see, and is exported.
        scores: the final evaluations; none where the run was not finished at this step.
        provenance: where the weights come from, as text by name.
    """

    spec: RunSpec
    folder: RunFolder
    path: str
    step: int
    model: Jepa
    target: Encoder
    scores: Mapping[str, float]
    provenance: dict[str, str]

    @property
    def encoder(self) -> Weights:
        """The judged encoder's weights in timm's names."""
        return renamed(self.target.state_dict(), encoder_theirs)


def open_trained(found: Found) -> Trained:
    """The run that a reference names, on the CPU.

    CheckpointError where there is no whole checkpoint, or no spec beside it.
    """
    path, step, state = checkpoint.meant(found.run, found.checkpoint, _weights)
    if not found.run.spec.exists():
        raise CheckpointError(f"{path} lies outside of its run's folder: {found.run.spec} is away")
    spec = load_spec(found.run.spec)
    if not isinstance(spec, RunSpec):
        raise CheckpointError(f"{found.run.root} belongs to no pretraining run")
    objective = objective_of(spec)
    model = objective.build(spec)
    model.load_state_dict(state["model"])
    target = objective.target(model.encoder)
    target.load_state_dict(state["target"])
    summary = read_json(found.run.summary) or {}
    final = summary if summary.get("steps") == step else {}
    facts = final.get("facts", {})
    known = {
        "run": spec.name,
        "step": str(step),
        "stoplab_version": version("stoplab"),
        "spec_digest": spec.digest(),
        "run_digest": final.get("run_digest"),
        "encoder_sha256": checkpoint.weights_sha256(renamed(target.state_dict(), encoder_theirs)),
        "job_id": _job_id(found.run),
        "cell": found.run.root.name if found.run.root.name != "run" else None,
        "mlflow_run_id": sent_run_id(found.run) or final.get("mlflow_run_id"),
        "data": facts.get("data"),
        "init_from": facts.get("init_from"),
    }
    provenance = {name: str(value) for name, value in known.items() if value}
    return Trained(
        spec,
        found.run,
        path,
        step,
        model.eval(),
        target.eval(),
        final.get("metrics", {}),
        provenance,
    )


def _weights(saved: checkpoint.Saved) -> tuple[str, int, dict[str, Any]]:
    return str(saved), *checkpoint.load_weights(saved)


def _job_id(run: RunFolder) -> str | None:
    """The job whose folder the run's lies in."""
    runs = run.root.parent
    return runs.parent.name if runs.name == "runs" else None
