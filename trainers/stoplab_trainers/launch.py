"""A run from start to end: one worker runs in place, several under Ray Train."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from pathlib import Path

import ray

from stoplab_platform.files import read_json, read_lines
from stoplab_platform.paths import RunFolder
from stoplab_platform.specs import RunSpec
from stoplab_platform.tracking import RunIdentity
from stoplab_trainers import checkpoint, elastic
from stoplab_trainers.beside import beside
from stoplab_trainers.cluster import connected
from stoplab_trainers.hardware import device_of
from stoplab_trainers.hooks import OnScores, Progress
from stoplab_trainers.loop import World
from stoplab_trainers.notice import Draining, Terminated
from stoplab_trainers.rank import rank_log, run_rank
from stoplab_trainers.resuming import Leg
from stoplab_trainers.roll import hung
from stoplab_trainers.summary import Summary, summary_of
from stoplab_trainers.watchdog import Watchdog
from stoplab_trainers.workers import Group

log = logging.getLogger("stoplab")

WATCH_S = 3.0  # seconds between two looks at the workers' progress
SCORES_S = 0.2  # seconds between two looks at their scores, where somebody decides by them


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
    single worker waits for it, several go on meanwhile. ``leg``: only a part of the run. On
    SIGTERM, or when Ray drains a worker's node, it saves and raises `Stopped` (PREEMPTED); with
    `compute.min_workers` the workers that are left go on instead.
    """
    finished = summary_of(folder)
    if finished is not None:
        return finished
    checkpoint.note_place(spec, folder, identity.job_id)
    folder.leave.unlink(missing_ok=True)
    if spec.compute.workers > 1:
        with _watched(folder, on_progress, on_scores):
            group = Group(spec, folder, identity, stop_file, leg)
            with connected(), Terminated() as terminated:  # connecting, Ray sets its own handler
                return elastic.train(group, terminated)
    with rank_log(folder, 0):
        world = World(device=device_of(spec.compute))
        with Watchdog(folder, world, spec.compute.hang_timeout_s) as watchdog:
            summary = run_rank(
                spec,
                folder,
                identity,
                world,
                watchdog,
                stop_file=stop_file,
                on_progress=on_progress,
                on_scores=on_scores,
                leg=leg,
                # A process of Ray's, as of a study's trial, is sent no SIGTERM; others have no Ray.
                notice=Draining() if ray.is_initialized() else Terminated(),
            )
    assert summary is not None
    return summary


@contextmanager
def _watched(
    folder: RunFolder,
    on_progress: Callable[[Progress], None] | None,
    on_scores: OnScores | None,
) -> Iterator[None]:
    """Tell the driver's log, and whoever asked, how far the workers of the block are."""
    known = len(read_lines(folder.scores))

    def watch(over: threading.Event) -> None:
        nonlocal known
        told, spoke_at, cried = None, float("-inf"), None
        while not over.wait(SCORES_S if on_scores else WATCH_S):
            try:
                scores = read_lines(folder.scores) if on_scores else []
                message, progress = hung(folder), read_json(folder.progress)
            except (OSError, JSONDecodeError):
                continue  # files that are away for a moment end nothing
            if on_scores:
                for line in scores[known:]:
                    on_scores(line["epoch"], line["values"])
                known = len(scores)
            if message and not cried:
                log.error("hung: %s", message)
            cried = message
            if progress is None or progress == told or time.monotonic() - spoke_at < WATCH_S:
                continue
            told, spoke_at = progress, time.monotonic()
            log.info(
                "step %(step)d/%(steps)d  epoch %(epoch)d  %(samples_per_s)s images/s", progress
            )
            if on_progress:
                on_progress(progress)

    with beside(watch, "stoplab-watch"):
        yield
