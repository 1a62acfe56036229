"""One rank's whole run: open the data, resume, train past the hooks, evaluate, sum up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from stoplab_platform import logs
from stoplab_platform.errors import Fenced, Stopped
from stoplab_platform.files import read_json, write_atomic, write_json
from stoplab_platform.masks import effective_ratio
from stoplab_platform.paths import RunFolder
from stoplab_platform.settings import Settings
from stoplab_platform.specs import RunSpec
from stoplab_platform.tracking import RunIdentity, SpoolTracker, flatten
from stoplab_trainers import checkpoint
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.diagnostics.coverage import coverage
from stoplab_trainers.diagnostics.masks import masks_figure
from stoplab_trainers.diagnostics.probe import first_images
from stoplab_trainers.diagnostics.telling import starvation, tell
from stoplab_trainers.diagnostics.watching import PICTURED, Watching, leave_pictures
from stoplab_trainers.divergence import explained
from stoplab_trainers.evals.outcome import spelled
from stoplab_trainers.hardware import precision
from stoplab_trainers.hooks import (
    Evaluating,
    OnScores,
    Progress,
    ProgressFile,
    Reporting,
    Saving,
    Stopping,
)
from stoplab_trainers.loop import Run, StepReport, World, train
from stoplab_trainers.notice import NEVER, PREEMPTED, RESIZE, Notice
from stoplab_trainers.resuming import Leg, begin, descent
from stoplab_trainers.roll import fence
from stoplab_trainers.scores import Final, Scores
from stoplab_trainers.summary import Summary, left
from stoplab_trainers.watchdog import Hook, Watchdog

log = logging.getLogger("stoplab.train")

PRUNED = "PRUNED"
"""The intent of a stop that a sweep's scheduler decided."""
GOES_ON = ("PAUSED", PREEMPTED, RESIZE)
"""The intents of stops after which a run will go on."""
PLAN_VERSION = 1
SAMPLER_VERSION = 1


def run_rank(
    spec: RunSpec,
    folder: RunFolder,
    identity: RunIdentity,
    world: World,
    watchdog: Watchdog,
    *,
    stop_file: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    on_scores: OnScores | None = None,
    leg: Leg | None = None,
    notice: Notice = NEVER,
) -> Summary | None:
    """Train one rank's part; rank 0 returns the summary, the others None.

    Raises on every rank: `errors.Stopped` when the stop file, `RunFolder.prune`, `.leave` or any
    rank's ``notice`` asks for it; `errors.Fenced` when a newer attempt owns the job's folder.
    """
    began, settings = time.monotonic(), Settings()
    torch.set_num_threads(spec.compute.resolved_threads)
    shards = ShardSet.open(spec.data.train, settings.folders.cache, spec.data.storage)
    with watchdog.training(0):  # ranks meet there, and one of them may never come
        run = Run(spec, shards, world, leg.until_epoch if leg else None)
        owner = {"run": spec.run_digest({"data": shards.fingerprint})}  # on whatever machine
        given = begin(run, folder, owner, leg)
    facts = _facts(spec, world, shards) | descent(leg) | given
    stops = [file for file in (stop_file, folder.prune, folder.leave) if file]
    if world.rank > 0:
        saving = Saving(folder, owner | given)
        stopping = Stopping(stops, saving, notice=notice)
        _train(run, folder, saving, [saving, stopping], watchdog, notice)
        return None
    identity = identity.with_digests(spec.digest(), spec.run_digest(facts))
    with _tracked(folder, settings.tracking_uri) as tracker:
        _introduce(run, identity, folder, tracker)
        scores = Scores(spec, settings.folders.cache) if spec.evals else None
        judging = [Evaluating(scores, tracker, folder.scores, on_scores)] if scores else []
        last = Last(run, watching := Watching(run, tracker, folder), folder.last)
        saving = Saving(folder, owner | given, tracker, watchdog.patience, fence(settings))
        for evaluating in judging if checkpoint.there(checkpoint.stores(folder)) else ():
            evaluating.catch_up(run)
        final = _train(run, folder, saving, [  # saved before it is judged: errors cost no step
            Reporting(tracker), watching, last, ProgressFile(folder, on_progress), saving,
            *map(watchdog.patiently, judging), Stopping(stops, saving, fence(settings), notice),
        ], watchdog, notice)  # fmt: skip
        found = _judged(run, scores, folder, tracker)
        leave_pictures(run, final["model"], folder, tracker)
        tracker.tags({"stoplab.weights_sha256": (weights := _hash(final))})
        tracker.finish("FINISHED")
    return left(folder, Summary(
        metrics={**last.metrics, **found},
        certificate=run.record.certificate(),
        facts=facts | (scores.facts() if scores else {}),
        run_digest=identity.run_digest,
        weights_sha256=weights,
        mlflow_run_id=tracker.run_id,
        steps=run.step,
        elapsed_s=round(time.monotonic() - began, 3),
    ))  # fmt: skip


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


def _train(
    run: Run,
    folder: RunFolder,
    saving: Saving,
    hooks: Sequence[Hook],
    watchdog: Watchdog,
    notice: Notice,
) -> dict[str, Any]:
    """Train past the hooks; the run's state at its end, which all ranks gather."""
    with explained(run, folder), saving, watchdog.training(run.step):
        with notice:
            train(run, [watchdog, *hooks])
        return run.state()


def _judged(
    run: Run, scores: Scores | None, folder: RunFolder, tracker: SpoolTracker
) -> dict[str, float]:
    """The final evaluations, which also leave what they told of each test image.

    A run that is left before its last epoch is only judged by the validation split.
    """
    if scores is None:
        final = Final()
    elif run.last_step < run.total_steps:
        final = scores.on_val(run.target)
    else:
        final = scores.final(run.target)
    final.leave(folder)
    tracker.metrics(run.step, final.metrics)
    if scores:
        tracker.tags({"stoplab.protocols": scores.protocols})
        tracker.artifact(folder.evaluation)
    log.info("done  %s", spelled(final.metrics))
    return final.metrics


@contextmanager
def _tracked(folder: RunFolder, uri: str) -> Iterator[SpoolTracker]:
    """A tracker that hears how its run ended, also where it ended badly.

    One that will go on is left as it is, under the same id: paused, preempted, or with other
    workers. One that a sweep's scheduler ended is KILLED like a cancelled one, and tagged with the
    step it came to.
    """
    tracker = SpoolTracker(folder, uri)
    try:
        yield tracker
    except Stopped as stop:
        if stop.intent == PRUNED:
            tracker.tags({"stoplab.pruned": str(stop.step)})
        if stop.intent not in GOES_ON:
            tracker.finish("FAILED" if stop.intent == "FAILED" else "KILLED")
        raise
    except Fenced:
        raise  # what is said of the run is the newer attempt's to say
    except Exception:
        tracker.finish("FAILED")
        raise
    finally:
        tracker.close()


class Last:
    """What the last step measured; it is left for an attempt that has only to evaluate."""

    def __init__(self, run: Run, watching: Watching, file: Path) -> None:
        self._watching, self._file = watching, file
        told = read_json(file) if run.step == run.last_step else None
        self.metrics: Mapping[str, float] = told or {}

    def __call__(self, run: Run, report: StepReport) -> None:
        """Keep the last step's numbers, before that step is saved."""
        if report.step == report.steps:
            self.metrics = {**report.metrics, **self._watching.metrics}
            write_json(self._file, self.metrics)


def _facts(spec: RunSpec, world: World, shards: ShardSet) -> dict[str, Any]:
    return {
        "precision": precision(spec, world.device),
        "threads": spec.compute.resolved_threads,
        "device": world.device.type,
        "data": shards.fingerprint,
        "plan": PLAN_VERSION,
        "sampler": SAMPLER_VERSION,
        **({"plugins": plugins} if (plugins := spec.plugins()) else {}),
    }


def _introduce(run: Run, identity: RunIdentity, folder: RunFolder, tracker: SpoolTracker) -> None:
    """Who it is, a tag to group by; the spec, what its masks cover, a picture of them, once."""
    spec = run.spec
    tracker.start(identity, flatten(spec.plain()))
    # The scales behind a ratio differ from grid to grid.
    ratio = effective_ratio(spec.masking, spec.grid)
    tracker.tags({"stoplab.masking_ratio": f"{ratio:.2f}"})
    picture = folder.artifacts / "masks.png"
    if picture.exists():
        return
    write_atomic(folder.spec, spec.to_yaml())
    tracker.artifact(folder.spec)
    seen = coverage(spec)
    tracker.metrics(0, seen.stats())
    if spec.collapse != "off" and (starved := starvation(seen)):
        tell(starved, folder, tracker)
    picture.parent.mkdir(parents=True, exist_ok=True)
    images = first_images(run.shards, spec.data.image_size, PICTURED)
    masks_figure(spec, images, picture)
    tracker.artifact(picture)


def _hash(state: Mapping[str, Any]) -> str:
    """Of the final weights."""
    named = {f"{p}.{name}": value for p in checkpoint.WEIGHTS for name, value in state[p].items()}
    return checkpoint.weights_sha256(named)
