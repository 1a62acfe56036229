"""The example specs of the documentation, filled in: one a kind."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from stoplab_platform.errors import SpecError
from stoplab_platform.specs import RunSpec, parse, parse_spec

PRETRAIN = """
kind: pretrain
name: stop-vitb16-in1k
seed: 0
objective: ijepa
positions:
  kind: stochastic
  noise_std: 0.25
  covariance: learned
  noise_on: masked
  parametrization: stoplab
model:
  encoder: vit_base_patch16_224
  predictor: {width: 384, depth: 6}
  init: published
  init_from: null
masking:
  kind: multiblock
  target:  {count: 4, scale: [0.15, 0.2], aspect: [0.75, 1.5]}
  context: {count: 1, scale: [0.85, 1.0], aspect: [1.0, 1.0]}
  min_keep: 10
  sampler: fixed
  context_quantile: 0.1
data:
  train: "/data/in1k/train-{000000..000999}.tar"
  eval: {train: "/data/in1k/probe-{000000..000099}.tar", val: null, test: "/data/in1k/val-*.tar"}
  image_size: 224
  crop_scale: [0.3, 1.0]
  hflip: false
  shuffle: {window_shards: null}
optim: {epochs: 600, batch_size: 2048, lr: 8.0e-4, start_lr: 2.0e-4, final_lr: 1.0e-4,
        warmup_epochs: 15, weight_decay: [0.04, 0.4], ema: [0.996, 1.0], clip_grad: null}
compute: {workers: 8, gpus_per_worker: 1, cpus_per_worker: 8, threads: null, precision: auto,
          compile: auto, strategy: ddp, max_failures: 3}
evals: [{kind: knn, every_epochs: 10}, {kind: linear}, {kind: low_shot, fraction: 0.01},
        {kind: location}]
checkpoint: {every_epochs: 1, every_steps: null, keep: 3}
tracking: {experiment: stop, tags: {}}
"""

SWEEP = """
kind: sweep
name: noise-by-masking
base: {kind: pretrain, name: base, data: {train: digits, image_size: 224}}
space:
  positions.noise_std: {grid: [0.1, 0.25, 0.5]}
  masking_ratio: {uniform: [0.5, 0.8]}
search: {kind: random, samples: 12}
scheduler: {kind: none}
objective: {metric: val/knn_top1, mode: max}
replicates: 1
limits: {trials: 100, gpu_hours: null, wall_hours: null, max_concurrent: null}
"""

COMPARE = """
kind: compare
name: stop-vs-deterministic
base: {kind: pretrain, name: base, data: {train: digits, image_size: 224}}
arms: {deterministic: {positions.kind: deterministic}, stochastic: {}}
seeds: [0, 1, 2, 3, 4]
primary: {metric: test/linear_top1, min_effect: 0.005, alpha: 0.05}
"""

EVALUATE = """
kind: evaluate
name: probe
checkpoint: {job: j_01kb3w}
data: {train: digits/train, val: null, test: digits/test, image_size: 224}
protocols: [{kind: linear}, {kind: knn}, {kind: low_shot, fraction: 0.01}, {kind: location}]
"""

EXAMPLES = {"pretrain": PRETRAIN, "sweep": SWEEP, "compare": COMPARE, "evaluate": EVALUATE}


def example(kind: str, **changes: Any) -> dict[str, Any]:
    """An example as plain data, top-level fields replaced."""
    return {**yaml.safe_load(EXAMPLES[kind]), **changes}


def small(**changes: Any) -> dict[str, Any]:
    """The least that a pretraining spec needs, top-level fields replaced or added."""
    return {"kind": "pretrain", "name": "x", "data": {"train": "digits"}, **changes}


def problems(data: Any) -> dict[str, str]:
    """What is wrong with a spec, by dotted field; it must be refused."""
    with pytest.raises(SpecError) as refused:
        parse_spec(data)
    return {problem.dotted: problem.message for problem in refused.value.problems}


def run(**changes: Any) -> RunSpec:
    """The small run with some fields changed."""
    return parse(RunSpec, small(**changes))
