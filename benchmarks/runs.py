"""The run that benchmarks of the trainer take: I-JEPA of a published ViT, digits at 224 px."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stoplab_platform.specs import RunSpec, override, parse


def run_spec(
    encoder: str, predictor: Mapping[str, int], batch_size: int, changes: Mapping[str, Any]
) -> RunSpec:
    """``changes`` are overrides by dotted field, as of a quick look."""
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
