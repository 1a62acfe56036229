"""What a tracker is, and what it needs to know of a run."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class RunIdentity:
    """What a run is called and belongs to; becomes the tags of its run in MLflow."""

    job_id: str
    kind: str
    name: str
    experiment: str
    arm: str | None = None
    pair_id: str | None = None
    cell: str | None = None
    parent_run_id: str | None = None
    attempt: int = 1
    spec_digest: str = ""
    run_digest: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    def with_digests(self, spec_digest: str, run_digest: str) -> RunIdentity:
        """The same run, its digests known."""
        return replace(self, spec_digest=spec_digest, run_digest=run_digest)

    def as_tags(self) -> dict[str, str]:
        """MLflow tags; `stoplab.job_id` and `stoplab.cell` together name one run."""
        known = {
            "mlflow.runName": self.name,
            "mlflow.parentRunId": self.parent_run_id,
            "stoplab.job_id": self.job_id,
            "stoplab.kind": self.kind,
            "stoplab.cell": self.cell or "run",
            "stoplab.arm": self.arm,
            "stoplab.pair_id": self.pair_id,
            "stoplab.attempt": str(self.attempt),
            "stoplab.spec_digest": self.spec_digest,
            "stoplab.run_digest": self.run_digest,
            "stoplab.git_sha": git_sha(),
        }
        return {**self.tags, **{name: value for name, value in known.items() if value}}


@runtime_checkable
class Tracker(Protocol):
    """The verbs of a run; none of them waits for, or fails with, a server.

    Used from one thread. After `close` nothing more is said.
    """

    def start(self, identity: RunIdentity, params: Mapping[str, Any]) -> None:
        """Open the run, or go on with it: parameters are taken at the first start only."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at a global step; what a metric has at this or a later step stays as it is."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Words about the run; a later one replaces an earlier one."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file to keep with the run; it must stay where it is until it is sent."""

    def finish(self, status: Status) -> None:
        """How the run ended."""

    def close(self) -> None:
        """Say good-bye; may be called twice."""


def flatten(plain: Mapping[str, Any]) -> dict[str, str]:
    """Nested JSON types to dotted keys with values as text; lists stay whole, as JSON."""
    flat: dict[str, str] = {}
    for key, value in plain.items():
        if isinstance(value, Mapping) and value:
            flat.update({f"{key}.{below}": text for below, text in flatten(value).items()})
        else:
            flat[key] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return flat


@cache
def git_sha() -> str | None:
    """Commit of the source tree that runs (`-dirty` where it was changed); None in a wheel."""
    folder = Path(__file__).parent
    try:
        # An installed copy may lie inside somebody else's repository.
        _git(folder, "ls-files", "--error-unmatch", Path(__file__).name)
        return _git(folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *words: str) -> str:
    command = ["git", "--no-optional-locks", *words]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=True, timeout=5
    )
    return done.stdout.strip()
