"""Folders of studies as they are after the runs, made without any run."""

from __future__ import annotations

import itertools
import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from stoplab_platform.files import write_atomic
from stoplab_platform.ledger import Cell, CellState, Ledger
from stoplab_platform.paths import JobFolder, RunFolder
from stoplab_platform.specs import ComparisonSpec, SweepSpec
from stoplab_sweeps.outcome import sum_up
from support_studies import comparison, finished, sweep

NOISE, RATIO = "positions.noise_std", "masking_ratio"
STEPS = range(0, 100, 10)


def spool(run: RunFolder, values: dict[str, list[float]]) -> None:
    """Metrics as a run leaves them, a value a step, with an end that was cut off by a kill."""
    lines = [
        {"verb": "metrics", "at": 0, "step": step, "values": {name: told[place]}}
        for name, told in values.items()
        for place, step in enumerate(STEPS[: len(told)])
    ]
    text = "".join(json.dumps(line) + "\n" for line in [{"verb": "start"}, *lines])
    write_atomic(run.spool, text + '{"verb": "metr')


def compared(root: Path, gain: float = 0.03, **changes: Any) -> tuple[ComparisonSpec, JobFolder]:
    """A comparison of three seeds that has ended, with learning curves and reports."""
    spec, folder = comparison(**changes), JobFolder(root)
    write_atomic(folder.spec, spec.to_yaml())
    cells = []
    for seed, arm in itertools.product(spec.seeds, spec.arms):
        luck = 0.01 * math.sin(7 * seed + len(arm))
        value = 0.5 + 0.02 * seed + luck + (gain if arm == "stochastic" else 0.0)
        cells.append(finished(arm, seed, value, index=len(cells)))
        loss = [2 * math.exp(-step / 40) + 0.1 * seed for step in STEPS]
        spool(folder.run(cells[-1].id), {"train/loss": loss, "val/knn_top1": [0.3, value]})
    Ledger(folder).plan(cells)
    sum_up(spec, folder, cells)
    return spec, folder


def swept(root: Path, noises: tuple[float, ...] = (0.0, 0.1, 0.3)) -> tuple[SweepSpec, JobFolder]:
    """A sweep of noise by masking, two seeds a point, that has ended; one point cannot run."""
    ratios = (0.6, 0.7)
    space = {NOISE: {"grid": list(noises)}, RATIO: {"grid": [*ratios, 0.99]}}
    spec, folder = sweep(space=space, replicates=2), JobFolder(root)
    write_atomic(folder.spec, spec.to_yaml())
    draws, began = np.random.default_rng(0), datetime(2026, 1, 1, tzinfo=UTC)
    cells = []
    for seed, noise, ratio in itertools.product((0, 1), noises, ratios):
        value = 0.7 - 2 * (noise - 0.2) ** 2 + 0.1 * ratio + 0.002 * draws.standard_normal()
        cells.append(Cell(
            id=f"p{len(cells)}-s{seed}", index=len(cells), point={NOISE: noise, RATIO: ratio},
            seed=seed, state=CellState.SUCCEEDED, metrics={"val/knn_top1": value},
            started_at=began, finished_at=began + timedelta(minutes=30), ran_s=1800,
        ))  # fmt: skip
    cells.append(Cell(id="p99-s0", index=99, point={NOISE: 0.1, RATIO: 0.99}, seed=0,
                      state=CellState.INFEASIBLE, error="no masks"))  # fmt: skip
    Ledger(folder).plan(cells)
    sum_up(spec, folder, cells)
    return spec, folder
