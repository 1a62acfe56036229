"""Jobs of kind `evaluate`: protocols on a checkpoint's frozen EMA encoder."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import torch

from stoplab_platform.errors import CheckpointError, NotFound
from stoplab_platform.paths import RunFolder, write_atomic
from stoplab_platform.settings import Settings
from stoplab_platform.specs import EvaluationSpec, RunSpec, applied, load_spec
from stoplab_platform.specs.evaluation import CheckpointRef
from stoplab_platform.tracking import RunIdentity, SpoolTracker, client, flatten
from stoplab_trainers import checkpoint
from stoplab_trainers.hooks import spelled
from stoplab_trainers.model.jepa import build_model
from stoplab_trainers.rank import Summary
from stoplab_trainers.scores import Scores

log = logging.getLogger("stoplab.evaluate")


def evaluate_checkpoint(
    spec: EvaluationSpec, job_id: str, folder: RunFolder, attempt: int = 1
) -> Summary:
    """Run the protocols, beside the untrained encoder and raw pixels; the run lands in MLflow."""
    began = time.monotonic()
    torch.set_num_threads(spec.compute.resolved_threads)
    settings = Settings()
    path = _checkpoint_path(spec.checkpoint, settings)
    trained = _judged(spec, path)
    step, state = checkpoint.load(path, identity=None)
    encoder = build_model(trained).encoder
    encoder.load_state_dict(state["target"])
    identity = RunIdentity(
        job_id=job_id,
        kind=spec.kind,
        name=spec.name,
        experiment=spec.tracking.experiment,
        attempt=attempt,
        tags=spec.tracking.tags,
        spec_digest=spec.digest(),
    )
    tracker = SpoolTracker(folder, settings.tracking_uri)
    try:
        tracker.start(identity, flatten(spec.plain()))
        scores = Scores(trained, settings.folders.cache)
        final = scores.final(encoder)
        metrics = final.metrics
        final.leave(folder)
        tracker.metrics(step, metrics)
        tracker.tags({"stoplab.protocols": scores.protocols})
        tracker.artifact(folder.evaluation)
        log.info("%s  %s", path, spelled(metrics))
        tracker.finish("FINISHED")
    finally:
        tracker.close()
    summary = Summary(
        metrics=metrics,
        certificate={},
        facts={"checkpoint": str(path), **scores.facts()},
        run_digest="",
        weights_sha256=checkpoint.weights_sha256(state["target"]),
        mlflow_run_id=tracker.run_id,
        steps=step,
        elapsed_s=round(time.monotonic() - began, 3),
    )
    write_atomic(folder.summary, summary.model_dump_json(indent=1) + "\n")
    return summary


def _checkpoint_path(ref: CheckpointRef, settings: Settings) -> Path:
    root = _named_folder(ref, settings)
    if (root / "manifest.json").exists():
        return root
    newest = checkpoint.latest(RunFolder(root).checkpoints)
    if newest is None:
        raise CheckpointError(f"no checkpoint in {root}")
    return newest


def _named_folder(ref: CheckpointRef, settings: Settings) -> Path:
    if ref.path is not None:
        return checkpoint.permitted(ref.path)
    if ref.job is not None:
        return settings.folders.job(ref.job).run("run").root
    assert ref.mlflow_run is not None, "a reference names one of the three"
    tags = client(settings.tracking_uri).get_run(ref.mlflow_run).data.tags
    job = tags.get("stoplab.job_id")
    if job is None:
        raise NotFound(f"MLflow run {ref.mlflow_run} carries no stoplab.job_id")
    return settings.folders.job(job).run(tags.get("stoplab.cell", "run")).root


def _judged(spec: EvaluationSpec, path: Path) -> RunSpec:
    """The run behind the checkpoint, with this evaluation's data and protocols."""
    trained = load_spec(path.parent.parent / "spec.yaml")
    if not isinstance(trained, RunSpec):
        raise CheckpointError(f"{path} belongs to no pretraining run")
    data = spec.data.plain()
    size = data.pop("image_size")
    changes = {
        "data.eval": data,
        "data.image_size": size,
        "evals": [protocol.plain() for protocol in spec.protocols],
    }
    return applied(trained, changes, RunSpec)
