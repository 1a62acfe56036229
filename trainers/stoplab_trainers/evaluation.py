"""Jobs of kind `evaluate`: protocols on a checkpoint's frozen EMA encoder."""

from __future__ import annotations

import logging
import time

import torch

from stoplab_platform.files import write_atomic
from stoplab_platform.paths import RunFolder
from stoplab_platform.references import referred
from stoplab_platform.settings import Settings
from stoplab_platform.specs import EvaluationSpec
from stoplab_platform.tracking import RunIdentity, SpoolTracker, flatten
from stoplab_trainers.evals.outcome import spelled
from stoplab_trainers.hardware import device_of
from stoplab_trainers.model.jepa import build_model
from stoplab_trainers.scores import Scores
from stoplab_trainers.summary import Summary
from stoplab_trainers.weights.fitting import Part, fill, fixed_tables
from stoplab_trainers.weights.trained import open_trained

log = logging.getLogger("stoplab.evaluate")


def evaluate_checkpoint(
    spec: EvaluationSpec, job_id: str, folder: RunFolder, attempt: int = 1
) -> Summary:
    """Run the protocols, beside the untrained encoder and raw pixels; the run lands in MLflow."""
    began = time.monotonic()
    torch.set_num_threads(spec.compute.resolved_threads)
    settings = Settings()
    found = open_trained(referred(spec.checkpoint, settings))
    judged = spec.judged(found.spec)
    encoder = build_model(judged).encoder
    weights = found.target.state_dict()
    fill([Part("encoder", encoder, weights, str, fixed_tables(encoder))])
    encoder.to(device_of(spec.compute))
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
        scores = Scores(judged, settings.folders.cache)
        final = scores.final(encoder)
        metrics = final.metrics
        final.leave(folder)
        tracker.metrics(found.step, metrics)
        tracker.tags({"stoplab.protocols": scores.protocols})
        tracker.artifact(folder.evaluation)
        log.info("%s  %s", found.path, spelled(metrics))
        tracker.finish("FINISHED")
    finally:
        tracker.close()
    summary = Summary(
        metrics=metrics,
        certificate={},
        facts={
            "checkpoint": found.path,
            "encoder_sha256": found.provenance["encoder_sha256"],
            **scores.facts(),
        },
        run_digest="",
        weights_sha256="",  # of model and target: nothing was trained
        mlflow_run_id=tracker.run_id,
        steps=found.step,
        elapsed_s=round(time.monotonic() - began, 3),
    )
    write_atomic(folder.summary, summary.model_dump_json(indent=1) + "\n")
    return summary
