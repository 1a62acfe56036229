"""Where parameters, metrics and artifacts go: a spool in the run's folder, and from it MLflow.

A run writes to its spool alone, so nothing outside can slow or stop it. A thread, and after the
run's end `drain`, send the spool on.
"""

from __future__ import annotations

from stoplab_platform.tracking.base import RunIdentity, Tracker, flatten
from stoplab_platform.tracking.memory import MemoryTracker
from stoplab_platform.tracking.mlflow_runs import (
    answers,
    client,
    create_parent,
    finish_runs,
    tags_of,
)
from stoplab_platform.tracking.sender import drain, sent_run_id, sent_run_ids
from stoplab_platform.tracking.series import Point, finite, read_last, read_series, thinned
from stoplab_platform.tracking.spool import SpoolTracker

__all__ = [
    "MemoryTracker",
    "Point",
    "RunIdentity",
    "SpoolTracker",
    "Tracker",
    "answers",
    "client",
    "create_parent",
    "drain",
    "finish_runs",
    "finite",
    "flatten",
    "read_last",
    "read_series",
    "sent_run_id",
    "sent_run_ids",
    "tags_of",
    "thinned",
]
