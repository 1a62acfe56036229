"""One step: the same as a plain one, in parts, with less memory, and what it says of itself."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

from stoplab_platform.cost import step_flops
from stoplab_platform.specs import RunSpec
from stoplab_trainers.data.loader import normalise
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.hardware import matrix_rate
from stoplab_trainers.loop import Run, World, _feed
from stoplab_trainers.masking import draw_masks
from stoplab_trainers.measure import Diverged, Pace, measure
from stoplab_trainers.randomness import draw_noise
from stoplab_trainers.step import Done, train_step
from support_runs import tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DEEP: dict[str, Any] = {"model__depth": 2, "model__predictor__depth": 2}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet.open("digits", tmp_path_factory.mktemp("cache"))


def trained(spec: RunSpec, digits: ShardSet, count: int = 3) -> tuple[Run, list[Done]]:
    """A run after its first steps, and what they left."""
    torch.set_num_threads(1)
    run, done = Run(spec, digits), []
    for _, batch in zip(range(count), _feed(run), strict=False):
        run.step += 1
        done.append(train_step(run, batch))
    return run, done


@pytest.mark.parametrize(
    "changes",
    [
        {"positions__kind": "deterministic"},
        {"positions__noise_std": 0.25},
        # few enough targets for the last block of the target encoder to be cut
        {"positions__noise_std": 0.25, "masking__target__count": 2},
    ],
)
def test_a_step_is_the_plain_recipes(
    digits: ShardSet, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Against benchmarks/plain_step.py: losses, and the weights after the first step."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from plain_step import PlainStep  # type: ignore[import-not-found]

    spec = tiny(**DEEP, **changes)
    plain = PlainStep(spec, Run(spec, digits).model.state_dict())
    run = Run(spec, digits)
    for number, batch in zip(range(4), _feed(run), strict=False):
        run.step += 1
        masks = draw_masks(spec, batch.step, run.rows)
        shape = masks.context.shape[1], *masks.targets.shape[1:]
        noise = draw_noise(spec, batch.step, run.rows, *shape, "cpu").masked
        told = run.schedules
        rates = told.lr(run.step), told.weight_decay(run.step), told.momentum(run.step)
        expected = plain(normalise(batch.images), masks, noise, rates)
        assert float(train_step(run, batch).loss) == pytest.approx(expected, abs=1e-6)
        if number == 0:
            matrix = plain.encoder.blocks[1].mlp.fc1.weight
            own = run.model.encoder.vit.blocks[1].mlp.fc1.weight
            assert torch.allclose(own, matrix, atol=1e-5)
            followed = plain.target.blocks[1].mlp.fc1.weight
            assert torch.allclose(run.target.vit.blocks[1].mlp.fc1.weight, followed, atol=1e-7)
    sys.modules.pop("plain_step")


@pytest.mark.parametrize("sampler", ["fixed", "official"])
def test_a_step_in_parts_is_the_step(digits: ShardSet, sampler: str) -> None:
    changes = {"masking__sampler": sampler, "masking__min_keep": 3}
    penalty = {"optim__a_penalty": {"norm": "l2", "weight": 0.01}}
    whole, parts = (
        trained(tiny(**changes, **penalty, compute__accumulate=number), digits)[1]
        for number in (1, 4)
    )
    for one, other in zip(whole, parts, strict=True):
        assert torch.equal(one.masks.context, other.masks.context)
        assert float(one.loss) == pytest.approx(float(other.loss), abs=1e-6)
        assert float(one.gradient_norm) == pytest.approx(float(other.gradient_norm), rel=1e-5)
        assert one.penalty is not None
        assert other.penalty is not None
        assert float(one.penalty) == pytest.approx(float(other.penalty), rel=1e-6)
        together = torch.cat(other.targets)
        assert torch.allclose(torch.cat(one.targets), together, atol=1e-5)


def test_recomputed_activations_change_no_bit(digits: ShardSet) -> None:
    kept, again = (
        trained(tiny(**DEEP, compute__activation_checkpointing=on), digits) for on in (False, True)
    )
    assert [float(done.loss) for done in kept[1]] == [float(done.loss) for done in again[1]]
    for one, other in zip(kept[0].model.parameters(), again[0].model.parameters(), strict=True):
        assert torch.equal(one, other)
    run, activations = again[0], []
    block = run.model.encoder.vit.blocks[0].mlp.act
    block.register_forward_hook(lambda *_: activations.append(torch.is_grad_enabled()))
    batch = next(iter(_feed(run)))
    train_step(run, batch)
    assert len(activations) == 2, "there and, once more, back"


def test_a_loss_that_was_no_number_is_told_at_the_next_logged_step(digits: ShardSet) -> None:
    run, done = trained(tiny(), digits, 1)
    assert measure(run, done[-1])["train/loss"] > 0
    run.finite.fill_(False)
    with pytest.raises(Diverged, match="at step 1 or before"):
        measure(run, done[-1])
    with pytest.raises(Diverged, match="the loss is nan at step 1"):
        measure(run, done[-1]._replace(loss=torch.tensor(torch.nan)))


def test_the_step_itself_notices(digits: ShardSet) -> None:
    run, _ = trained(tiny(), digits, 1)
    assert bool(run.finite)
    with torch.no_grad():
        run.model.predictor.proj.bias.fill_(torch.inf)
    train_step(run, next(iter(_feed(run))))
    assert not bool(run.finite)


def test_utilisation_is_counted_on_what_the_masks_left(
    digits: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU is needed for the number; here a clock and a rate are given."""
    run, done = trained(tiny(), digits, 2)
    pace = Pace(run)
    for one in done:
        pace.add(one.masks, 0.5)
    monkeypatch.setattr("stoplab_trainers.measure.matrix_rate", lambda *_: 1e9)
    assert pace.taken() == {"train/samples_per_s": 128.0}
    run.world = World(device=torch.device("cuda"))
    for one in done:
        pace.add(one.masks, 0.5)
    lengths = [(one.masks.context.shape[1], one.masks.targets.shape[2]) for one in done]
    expected = sum(64 * step_flops(run.spec, *length) for length in lengths) / 1e9
    assert pace.taken()["train/mfu"] == pytest.approx(expected)


def test_the_rate_of_matrix_products_is_this_machines() -> None:
    torch.set_num_threads(1)
    assert 1e8 < matrix_rate(torch.device("cpu"), torch.float32) < 1e13


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler warns of what it does itself
def test_compiled_blocks_compute_the_same(digits: ShardSet) -> None:
    """At two context lengths and more; what a compiler fuses is rounded otherwise."""
    jaxtyping.config.update("jaxtyping_disable", True)  # it cannot trace through the checks
    try:
        plain, compiled = (
            trained(tiny(**DEEP, compute__compile=mode), digits, 4)[1] for mode in ("off", "on")
        )
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    assert len({done.masks.context.shape[1] for done in plain}) > 1
    for one, other in zip(plain, compiled, strict=True):
        assert float(one.loss) == pytest.approx(float(other.loss), abs=1e-5)
