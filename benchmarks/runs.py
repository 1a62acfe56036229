"""The runs that benchmarks of the trainer take."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from stoplab_platform.specs import RunSpec, load_spec, override, parse
from stoplab_trainers.loop import World

PUBLISHED = Path(__file__).parents[1] / "trainers" / "configs" / "published"
QUICK = {
    "model.encoder": "vit_tiny_patch16_224", "model.depth": 1, "model.predictor.depth": 1,
    "optim.batch_size": 8,
}  # fmt: skip


def run_spec(
    encoder: str, predictor: Mapping[str, int], batch_size: int, changes: Mapping[str, Any]
) -> RunSpec:
    """I-JEPA of a published ViT, digits at 224 px.

    ``changes`` are overrides by dotted field, as of a quick look.
    """
    plain = {
        "kind": "pretrain",
        "name": "bench",
        "positions": {"kind": "deterministic"},
        "model": {"encoder": encoder, "predictor": dict(predictor)},
        "data": {"train": "digits", "image_size": 224},
        "optim": {"epochs": 600, "batch_size": batch_size},
        "evals": [],
    }
    return parse(RunSpec, override(plain, changes))


def published_spec(config: str, data: str, changes: Mapping[str, Any], *, quick: bool) -> RunSpec:
    """A published recipe, but on one worker of this machine, other data and without evaluations.

    For a ``quick`` look it is a tiny one.
    """
    here = {
        "data.train": data, "data.eval": None, "evals": [],
        "compute.workers": 1, "compute.gpus_per_worker": int(torch.cuda.is_available()),
    }  # fmt: skip
    spec = load_spec(PUBLISHED / f"{config}.yaml", {**here, **changes, **(QUICK if quick else {})})
    assert isinstance(spec, RunSpec)
    return spec


def on_this_device() -> World:
    """One worker on the GPU, or on the processor where there is none."""
    return World(device=torch.device("cuda", 0) if torch.cuda.is_available() else World().device)
