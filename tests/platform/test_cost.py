"""Against published numbers; against torch it is checked in `trainers/test_cost_is_right`."""

from __future__ import annotations

import time
from typing import Any

import pytest

from stoplab_platform.cost import (
    Range,
    encoder_flops,
    flops,
    memory,
    parameters,
    step_flops,
)
from stoplab_platform.masks import context_tokens, target_tokens
from stoplab_platform.specs import RunSpec, override, parse
from support_specs import example

OFFICIAL = {"masking.sampler": "official", "optim.batch_size": 128, "compute.workers": 1}


def published(encoder: str, depth: int, **changes: Any) -> RunSpec:
    dotted = {"model.encoder": encoder, "model.predictor.depth": depth, **OFFICIAL, **changes}
    return parse(RunSpec, override(example("pretrain"), dotted))


@pytest.mark.parametrize(
    ("encoder", "depth", "gflops"),
    [
        ("vit_base_patch16_224", 6, 84.8),
        ("vit_large_patch16_224", 12, 262.3),
        ("vit_huge_patch14_224", 12, 653.6),
    ],
)
def test_operations_of_the_published_models(encoder: str, depth: int, gflops: float) -> None:
    """By the formula of all rows in all blocks; ours does less in the last ones."""
    spec = published(encoder, depth)
    tokens = context_tokens(spec.masking, spec.grid, batch_size=128)
    told = step_flops(spec, tokens, target_tokens(spec.masking, spec.grid)) / 1e9
    assert told == pytest.approx(gflops, rel=0.02)
    assert 0.93 * told < flops(spec).train / 1e9 < told


def test_parameters_of_the_paper() -> None:
    found = parameters(published("vit_base_patch16_224", 6))
    assert round(found.encoder / 1e6, 2) == 85.65
    assert found.trained == found.encoder + found.predictor


def test_tokens_decide() -> None:
    spec = published("vit_base_patch16_224", 6)
    sizes, grid = spec.model.sizes(), spec.grid
    kept = context_tokens(spec.masking, grid, batch_size=128)
    assert flops(spec).context == encoder_flops(sizes, kept)
    asked = 4 * target_tokens(spec.masking, grid)  # rows of the last block: the others have no use
    unasked = (4 + 16) * 768**2 * (196 - asked) + 4 * 768 * 196 * (196 - asked)
    assert flops(spec).target == pytest.approx(encoder_flops(sizes, 196) - unasked)
    assert 32 < target_tokens(spec.masking, grid) < 36
    fewer = published("vit_base_patch16_224", 6, **{"masking.target.scale": [0.1, 0.1]})
    assert target_tokens(fewer.masking, grid) < target_tokens(spec.masking, grid)


def test_a_large_grid_is_looked_at_on_a_coarse_one() -> None:
    changes = {"data.image_size": 448, "masking.sampler": "fixed"}
    spec = published("vit_base_patch16_224", 6, **changes)
    kept = context_tokens(spec.masking, spec.grid)
    exact = encoder_flops(spec.model.sizes(), kept)
    assert flops(spec).context == pytest.approx(exact, rel=0.02)
    began = time.perf_counter()
    large = {**changes, "data.image_size": 2048, "masking.min_keep": 1000}
    assert flops(published("vit_base_patch16_224", 6, **large)).train > 20 * exact
    assert time.perf_counter() - began < 10


def test_noise_that_is_not_projected_costs_nothing() -> None:
    none = published("vit_base_patch16_224", 6, **{"positions.kind": "deterministic"})
    costs = {
        word: flops(published("vit_base_patch16_224", 6, **{"positions.covariance": word})).train
        for word in ("identity", "learned", "untied")
    }
    assert costs["identity"] == flops(none).train < costs["learned"] == costs["untied"]


def test_memory_grows_with_the_local_batch_and_shrinks_with_bf16() -> None:
    whole = memory(published("vit_base_patch16_224", 6))
    parts = memory(published("vit_base_patch16_224", 6, **{"compute.workers": 8}))
    assert parts.activations < whole.activations / 6
    assert parts.gradients == 2 * whole.gradients, "several workers send from a copy"
    slow = memory(published("vit_base_patch16_224", 6, **{"compute.precision": "fp32"}))
    assert slow.activations > 1.3 * whole.activations
    assert (
        whole.optimizer
        == 2 * whole.gradients
        == 8 * parameters(published("vit_base_patch16_224", 6)).trained
    )
    assert whole.total.low < whole.total.value < whole.total.high


def test_a_range_scales_and_adds() -> None:
    assert Range(1, 2, 3) * 2 + Range(1, 1, 1) == Range(3, 5, 7)


def test_shards_parts_and_recomputing_need_less_memory() -> None:
    def peak(**compute: Any) -> Any:
        changes = {f"compute.{name}": value for name, value in compute.items()}
        return memory(published("vit_base_patch16_224", 6, **{**changes, "compute.workers": 4}))

    plain, shards = peak(), peak(strategy="fsdp")
    assert shards.weights == plain.weights // 4
    assert shards.gradients == plain.gradients // 8  # and no second copy to send from
    assert shards.optimizer == plain.optimizer // 4
    assert shards.target == plain.target
    assert peak(accumulate=4).activations == pytest.approx(plain.activations / 4, rel=0.01)
    assert peak(activation_checkpointing=True).activations < plain.activations / 2
