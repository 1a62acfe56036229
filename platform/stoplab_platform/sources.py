"""What a spec reads of other jobs: weights that it evaluates or starts from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import PurePath
from typing import Any

from stoplab_platform.secret_store import texts
from stoplab_platform.specs.places import FIELDS, JOBS, RUNS, field

Where = tuple[str | int, ...]


def named_jobs(spec: Mapping[str, Any]) -> Iterator[tuple[Where, str]]:
    """Jobs that a spec (plain data) names for their weights, and where."""
    for path, text in texts(spec):
        if field(path) in JOBS:
            yield path, text


def reads(spec: Mapping[str, Any], job_id: str, runs: Collection[str] = ()) -> bool:
    """Whether a spec (plain data) reads what a job has: by its id, by a path into its folder, or
    by one of its ``runs`` in MLflow."""
    for path, text in texts(spec):
        name = field(path)
        if name in JOBS and text == job_id:
            return True
        if name in RUNS and text in runs:
            return True
        if name in FIELDS and job_id in PurePath(text).parts:
            return True
    return False
