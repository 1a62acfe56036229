"""Small runs on real digits, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stoplab_platform.paths import RunFolder
from stoplab_platform.specs import RunSpec, override, parse
from stoplab_platform.tracking import RunIdentity

TINY: dict[str, Any] = {
    "kind": "pretrain",
    "name": "tiny",
    "positions": {"kind": "stochastic", "noise_std": 0.25},
    "model": {
        "encoder": "custom", "width": 16, "depth": 1, "heads": 2, "patch_size": 4,
        "predictor": {"width": 16, "depth": 1}, "init": "small",
    },
    "masking": {
        "kind": "multiblock", "min_keep": 4,
        "target": {"count": 3, "scale": [0.2, 0.35], "aspect": [0.75, 1.5]},
    },
    "data": {"train": "digits", "image_size": 16, "crop_scale": [0.7, 1.0]},
    "optim": {
        "epochs": 2, "batch_size": 64, "lr": 1e-3, "start_lr": 1e-4, "final_lr": 1e-5,
        "warmup_epochs": 0.2, "weight_decay": [0.04, 0.04],
    },
    "evals": [{"kind": "knn"}],
}  # fmt: skip


def tiny(**changes: Any) -> RunSpec:
    """A run of 38 steps; keyword arguments are dotted fields with `__` for the dot."""
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    return parse(RunSpec, override(TINY, dotted))


def identity(name: str = "tiny") -> RunIdentity:
    """A run of no job in particular."""
    return RunIdentity(job_id="j_test", kind="pretrain", name=name, experiment="tests")


def folder(root: Path, name: str = "run") -> RunFolder:
    """A run's folder below a temporary one."""
    path = root / name
    path.mkdir(parents=True, exist_ok=True)
    return RunFolder(path)
