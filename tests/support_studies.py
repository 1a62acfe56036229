"""Small studies on digits, finished cells, and a schedule without Ray, for tests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stoplab_platform.errors import Stopped
from stoplab_platform.files import write_json
from stoplab_platform.ledger import Cell, CellState
from stoplab_platform.paths import RunFolder
from stoplab_platform.settings import Settings
from stoplab_platform.specs import ComparisonSpec, RunSpec, SweepSpec, override, parse
from stoplab_platform.tracking import RunIdentity
from stoplab_sweeps.cells import Execute, Start, StudySpec, run_cell
from stoplab_sweeps.feed import Feed
from stoplab_trainers.resuming import Leg
from stoplab_trainers.summary import Summary
from support_runs import TINY

ARMS = {"deterministic": {"positions.kind": "deterministic"}, "stochastic": {}}


def comparison(base: Mapping[str, Any] | None = None, **changes: Any) -> ComparisonSpec:
    """Two arms on three seeds, judged by kNN."""
    data = {
        "kind": "compare", "name": "pairs", "base": override(TINY, base or {}), "arms": ARMS,
        "seeds": [0, 1, 2], "primary": {"metric": "test/knn_top1"}, **changes,
    }  # fmt: skip
    return parse(ComparisonSpec, data)


def sweep(base: Mapping[str, Any] | None = None, **changes: Any) -> SweepSpec:
    """Two noise scales times two masking ratios, of which the first cannot be reached."""
    data = {
        "kind": "sweep", "name": "grid", "base": override(TINY, base or {}),
        "space": {
            "positions.noise_std": {"grid": [0.1, 0.25]},
            "masking_ratio": {"grid": [0.3, 0.6]},
        },
        **changes,
    }  # fmt: skip
    return parse(SweepSpec, data)


def start(job_id: str = "j_study", attempt: int = 1) -> Start:
    """A start of a job below the test's own home."""
    settings = Settings()
    folder = settings.folders.job(job_id)
    folder.root.mkdir(parents=True, exist_ok=True)
    return Start(job_id, folder, attempt, settings.tracking_uri)


def certificate(*words: object) -> dict[str, str]:
    """Hashes of what a run was fed; the words decide them all."""
    digest = hashlib.sha256(repr(words).encode()).hexdigest()
    return dict.fromkeys(("init", "samples", "crops", "masks"), digest)


def finished(arm: str, seed: int, value: float, **changes: Any) -> Cell:
    """An arm's cell that has ended well."""
    cell = Cell(
        id=f"{arm}-s{seed}", index=seed, arm=arm, seed=seed, state=CellState.SUCCEEDED,
        metrics={"test/knn_top1": value, "init/knn_top1": 0.4, "pixels/knn_top1": 0.9},
        certificate=certificate(seed), mlflow_run_id=f"run-{arm}-{seed}",
    )  # fmt: skip
    return Cell.model_validate({**cell.model_dump(), **changes})


def summary(spec: RunSpec, value: float = 0.5) -> Summary:
    """What a run would leave; its score rises with its noise."""
    noise = getattr(spec.positions, "noise_std", 0.0)
    metrics = {f"{split}/knn_top1": value + noise / 10 for split in ("val", "test")}
    return Summary(
        metrics=metrics, certificate=certificate(spec.seed), facts={"precision": "fp32"},
        run_digest=spec.digest(), weights_sha256="0", mlflow_run_id=None, steps=1, elapsed_s=0.1,
    )  # fmt: skip


class Runs:
    """An `execute` that trains nothing and remembers; ``troubles`` maps a run's folder to one."""

    def __init__(self, troubles: Mapping[str, Exception] | None = None) -> None:
        self.troubles = dict(troubles or {})
        self.done: list[str] = []
        self.identities: list[RunIdentity] = []
        self.legs: dict[str, Leg | None] = {}

    def __call__(
        self,
        spec: RunSpec,
        folder: RunFolder,
        identity: RunIdentity,
        *,
        stop_file: Path,
        leg: Leg | None = None,
    ) -> Summary:
        self.done.append(folder.root.name)
        self.identities.append(identity)
        self.legs[folder.root.name] = leg
        trouble = self.troubles.pop(folder.root.name, None)
        if isinstance(trouble, Stopped):
            write_json(stop_file, {"intent": trouble.intent, "deadline_s": 5})
        if trouble is not None:
            raise trouble
        return summary(spec)


def one_by_one(feed: Feed, spec: StudySpec, start: Start, execute: Execute) -> None:
    """A schedule in this process."""
    while isinstance(cell := feed.next(), Cell):
        run_cell(spec, cell.id, start, execute)
        feed.ended(cell.id)
