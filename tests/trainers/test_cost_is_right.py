"""What the platform says without torch about sizes, operations and data is what torch does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from stoplab_platform.admission import Resources
from stoplab_platform.cost import encoder_parameters, flops, memory, parameters
from stoplab_platform.counting import count_images
from stoplab_platform.estimates import START_S, estimate
from stoplab_platform.paths import Home
from stoplab_platform.rates import measured
from stoplab_platform.specs.data import EMBEDDED, EMBEDDED_IMAGES
from stoplab_platform.specs.model import ModelSpec
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.launch import execute
from stoplab_trainers.loop import Run, steps
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.predictor import Predictor
from stoplab_trainers.parallel import blocks
from stoplab_trainers.snapshot import Snapshots
from support_models import case
from support_runs import identity, tiny

PUBLISHED = ("vit_base_patch16_224", "vit_large_patch16_224", "vit_huge_patch14_224")
LARGER: dict[str, Any] = {"data__image_size": 32, "model__width": 48, "model__heads": 4}


@pytest.mark.parametrize("name", [*PUBLISHED, "vit_giant_patch14_224", "vit_tiny_patch16_224"])
def test_parameters_are_timms_own(name: str) -> None:
    with torch.device("meta"):
        theirs = timm.create_model(
            name, class_token=False, global_pool="avg", fc_norm=False, num_classes=0
        )
    count = sum(p.numel() for p in theirs.parameters()) - theirs.pos_embed.numel()
    assert encoder_parameters(ModelSpec(encoder=name).sizes()) == count


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_that_are_trained(name: str) -> None:
    spec = tiny(
        model={"encoder": name, "predictor": {"width": 384, "depth": 12}},
        data__image_size=224, masking={"kind": "multiblock"},
    )  # fmt: skip
    sizes = spec.model.sizes()
    with torch.device("meta"):
        encoder = Encoder(sizes, 224)
        predictor = Predictor(
            spec.positions, encoder_width=sizes.width, width=384, depth=12,
            heads=spec.model.predictor_heads, grid=spec.grid,
        )  # fmt: skip
    assert parameters(spec).encoder == _trained(encoder)
    assert parameters(spec).predictor == _trained(predictor)


@pytest.mark.parametrize(
    "positions",
    [
        {"kind": "deterministic"},
        {"kind": "deterministic", "parametrization": "official"},
        {"kind": "deterministic", "table": "learned"},
        {"kind": "stochastic", "covariance": "untied"},
        {"kind": "stochastic", "covariance": "untied", "noise_std": 0},
        {"kind": "stochastic", "parametrization": "official"},
    ],
)
def test_parameters_of_every_kind_of_positions(positions: dict[str, Any]) -> None:
    made = case(positions=positions)
    assert parameters(made.spec).trained == _trained(made.model)
    pixels = case(positions=positions, objective="mae", masking={"kind": "random"})
    assert parameters(pixels.spec).trained == _trained(pixels.model)


@pytest.mark.parametrize(
    "changes",
    [
        LARGER,
        {**LARGER, "model__depth": 4, "model__predictor__depth": 3},
        {**LARGER, "positions": {"kind": "deterministic"}},
        {**LARGER, "positions": {"kind": "stochastic", "noise_on": "both"}},
        {**LARGER, "masking": {"kind": "random", "ratio": 0.6}},
        {**LARGER, "masking": {"kind": "random"}, "objective": "mae"},
        {**LARGER, "model__depth": 4, "compute__activation_checkpointing": True},
    ],
)
def test_operations_are_those_that_torch_counts(changes: dict[str, Any]) -> None:
    """Within a few per cent: torch counts what attention computes again on its way back."""
    counted = [_counted(step, changes) for step in range(8)]
    assert flops(case(**changes).spec).train == pytest.approx(sum(counted) / 8, rel=0.05)


def test_activations_are_what_autograd_keeps() -> None:
    made = case(batch=64, model__depth=4, model__predictor__depth=3, **LARGER)
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in made.model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = made.loss()
    count = sum(size for pointer, size in kept.items() if pointer not in weights)
    assert loss.requires_grad
    assert memory(made.spec).activations == pytest.approx(count, rel=0.3)


@pytest.mark.parametrize("changes", [{}, {"masking": {"kind": "random"}, "objective": "mae"}])
def test_a_checkpoints_copy_takes_as_much_memory(home: Path, changes: dict[str, Any]) -> None:
    run = Run(tiny(**LARGER, **changes), ShardSet.open("digits", home / "cache"))
    next(steps(run))  # the moments are there from then on
    snapshots = Snapshots()
    snapshots.take(run.state())
    told = memory(run.spec)
    assert told.checkpoint == pytest.approx(snapshots.bytes, rel=0.01)
    spent = told.weights + told.gradients + told.optimizer + told.target + told.runtime
    assert told.total.value == spent + told.activations + told.checkpoint


def test_embedded_sets_hold_as_many_images_as_is_said(home: Path) -> None:
    names = {name for base in EMBEDDED for name in (base, f"{base}/train", f"{base}/test")}
    assert EMBEDDED_IMAGES.keys() == names
    for name in names:
        shards = ShardSet.open(name, home / "cache")
        assert count_images(name).images == len(shards)  # type: ignore[union-attr]


def test_counting_shards_is_what_the_loader_finds(home: Path) -> None:
    shards = ShardSet.open("digits", home / "cache")
    folder = next((home / "cache" / "embedded").glob("*/train-*.tar")).parent
    counted = count_images(str(folder / "train-{000000..000003}.tar"))
    assert counted is not None
    assert abs(counted.images - len(shards)) < 4, "all but the last are alike"


def test_a_finished_run_tells_how_fast_it_was(home: Path) -> None:
    spec = tiny()
    folder = Home(home).job("j_test")
    summary = execute(spec, folder.run("run"), identity())
    (known,) = measured([folder])
    assert known.run == "j_test/run"
    assert known.images == 1257 // 64 * 64
    assert known.overhead_s is not None
    assert 0 < known.overhead_s < summary.elapsed_s
    told = estimate(tiny(optim__lr=2e-3), Resources(1, 0), [known])
    assert told.confidence == "measured"
    assert told.samples_per_s is not None
    assert told.samples_per_s.value == known.samples_per_s
    assert told.wall_hours is not None
    took = (summary.elapsed_s + START_S.value) / 3600
    assert told.wall_hours.value == pytest.approx(took, rel=0.01)


def _trained(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _counted(step: int, changes: dict[str, Any]) -> float:
    """Operations for one image of a training step, by torch."""
    made = case(step=step, **changes)
    for block in blocks(made.model):
        block.recomputes = made.spec.compute.activation_checkpointing
    with FlopCounterMode(display=False) as counter:
        made.loss().backward()  # type: ignore[no-untyped-call]
    return counter.get_total_flops() / len(made.images)
