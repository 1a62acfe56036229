"""Jobs of kind `evaluate`: protocols on a checkpoint's frozen EMA encoder."""

from __future__ import annotations

import logging
import time

import torch

from stoplab_platform.errors import CheckpointError
from stoplab_platform.paths import RunFolder, write_atomic
from stoplab_platform.references import referred
from stoplab_platform.settings import Settings
from stoplab_platform.specs import EvaluationSpec, RunSpec, applied, load_spec
from stoplab_platform.tracking import RunIdentity, SpoolTracker, flatten
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
    found = referred(spec.checkpoint, settings)
    path = checkpoint.meant(found.run, found.checkpoint)
    trained = _judged(spec, found.run)
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


def _judged(spec: EvaluationSpec, run: RunFolder) -> RunSpec:
    """The run behind the checkpoint, with this evaluation's data and protocols."""
    trained = load_spec(run.spec)
    if not isinstance(trained, RunSpec):
        raise CheckpointError(f"{run.root} belongs to no pretraining run")
    data = spec.data.plain()
    size = data.pop("image_size")
    changes = {
        "data.eval": data,
        "data.image_size": size,
        "evals": [protocol.plain() for protocol in spec.protocols],
    }
    return applied(trained, changes, RunSpec)
