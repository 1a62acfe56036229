"""Sends a spool to MLflow, exactly once, and remembers how far it came."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from filelock import FileLock, Timeout

from stoplab_platform.errors import TrackerRefused, TrackerUnavailable
from stoplab_platform.files import read_json, write_json
from stoplab_platform.paths import JobFolder, RunFolder
from stoplab_platform.tracking.lines import whole_lines
from stoplab_platform.tracking.mlflow_runs import Runs

log = logging.getLogger("stoplab.tracking")

MOST_METRICS = 1000  # in one request: MLflow's own limit
LOCK_S = 1.0  # to wait for another process that sends this spool


def sent_run_id(folder: RunFolder) -> str | None:
    """Id of the folder's run in MLflow; None until it is there."""
    return (read_json(folder.spool_sent) or {}).get("run_id")


def sent_run_ids(folder: JobFolder) -> list[str]:
    """Ids in MLflow of all runs of a job that are there."""
    return [run_id for run in folder.each_run() if (run_id := sent_run_id(run))]


def drain(folder: RunFolder, uri: str | None, timeout_s: float) -> bool:
    """Send what a run left in its spool; False where the deadline came first."""
    if uri is None or not folder.spool.exists():
        return True
    sender = Sender(folder, uri)
    deadline = time.monotonic() + timeout_s
    while not sender.send():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.2)
    return True


@dataclass
class Sent:
    """How far the spool was sent (bytes), and to which run."""

    offset: int = 0
    run_id: str | None = None
    experiment_id: str | None = None


class Sender:
    """Sends whole lines in order. Sending a line twice changes nothing in MLflow:

    a run is found again by its tags, and a point with the same time, step and value is one point.
    So it is enough to record the offset after each request.
    """

    def __init__(self, folder: RunFolder, uri: str) -> None:
        self._folder, self._uri = folder, uri
        self._runs: Runs | None = None
        self._away = False

    def send(self) -> bool:
        """Send all that is there; False where something is left, because MLflow is away."""
        try:
            with FileLock(self._folder.spool_lock, timeout=LOCK_S):
                self._send_all()
        except Timeout:
            return False
        except (TrackerUnavailable, OSError) as error:
            if not self._away:
                log.warning("MLflow does not answer; the spool waits for it: %s", error)
            self._away = True
            return False
        if self._away:
            log.info("MLflow answers again")
        self._away = False
        return True

    def _send_all(self) -> None:
        sent = Sent(**(read_json(self._folder.spool_sent) or {}))
        # What MLflow has must survive in the spool, or a resume would say it a second time.
        with self._folder.spool.open("rb") as file:
            os.fsync(file.fileno())
            file.seek(sent.offset)
            for batch, end in _batches(file.read(), sent.offset):
                self._send(batch, sent)
                sent.offset = end
                write_json(self._folder.spool_sent, vars(sent))

    def _send(self, batch: list[dict[str, Any]], sent: Sent) -> None:
        self._runs = self._runs or Runs(self._uri)
        if batch[0]["verb"] == "start":
            sent.run_id, sent.experiment_id = self._runs.open(batch[0])
            return
        if sent.run_id is None:
            log.error("%s is passed over: the spool's start is broken", batch[0]["verb"])
            return
        try:
            self._runs.apply(sent.run_id, batch)
        except TrackerRefused as refused:
            # Trying again would only block all that follows; the spool still holds it.
            if len(batch) == 1:
                log.error("MLflow refused %s: %s", batch[0]["verb"], refused)
            else:
                for line in batch:
                    self._send([line], sent)


def _batches(data: bytes, offset: int) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Runs of metrics lines, and single other lines, each with the offset where it ends."""
    batch: list[dict[str, Any]] = []
    size = 0
    for line, length in whole_lines(BytesIO(data)):
        if line is None:
            offset += length
            continue
        points = len(line["values"]) if line["verb"] == "metrics" else MOST_METRICS
        if batch and size + points > MOST_METRICS:
            yield batch, offset
            batch, size = [], 0
        batch.append(line)
        size += points
        offset += length
    if batch:
        yield batch, offset
