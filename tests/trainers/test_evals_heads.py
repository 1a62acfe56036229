"""Protocols that train on images: VISSL's heads and fine-tuning, on digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stoplab_platform.specs.data import DataSpec
from stoplab_platform.specs.evals import (
    FinetuneEval,
    KnnEval,
    LinearSgdEval,
    LowShotEval,
    RobustnessEval,
)
from stoplab_trainers.checkpoint import weights_sha256
from stoplab_trainers.evals import finetune, linear_sgd
from stoplab_trainers.evals.crops import crops
from stoplab_trainers.evals.draws import batches, linear_layer
from stoplab_trainers.evals.features import Bank
from stoplab_trainers.evals.low_shot import draw_rows
from stoplab_trainers.evals.outcome import accuracy
from stoplab_trainers.evals.suite import Splits, load_splits, outcomes, pixel_encoder
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import build_model
from support_runs import tiny

SGD = LinearSgdEval(kind="linear_sgd", epochs=3, steps=(2,), augment=False, batch_size=64, lr=1)
CROPS = LinearSgdEval(kind="linear_sgd", epochs=1, steps=(), batch_size=256)
TUNE = FinetuneEval(kind="finetune", epochs=2, warmup_epochs=1, per_class=20, crop_scale=(0.7, 1))


@pytest.fixture(scope="module")
def digits(shared_cache: Path) -> Splits:
    data = DataSpec(train="digits", image_size=16).eval_data()
    assert data is not None
    return load_splits(data, 16, shared_cache)


@pytest.fixture
def encoder() -> Encoder:
    return build_model(tiny(model__depth=2)).encoder


# Schedules


def test_the_learning_rate_of_vissl() -> None:
    whole = LinearSgdEval(kind="linear_sgd")
    found = [linear_sgd.learning_rate(whole, 256, epoch) for epoch in range(28)]
    expected = [0.01] * 8 + [0.001] * 8 + [0.0001] * 8 + [0.00001] * 4
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert linear_sgd.learning_rate(whole, 1024, 0) == 0.04
    assert linear_sgd.learning_rate(whole, 32, 8) == pytest.approx(0.000125, rel=1e-12)
    other = LinearSgdEval(kind="linear_sgd", epochs=14, steps=(4, 8, 12), lr=0.02)
    told = [linear_sgd.learning_rate(other, 256, epoch) for epoch in (3, 4, 8, 12, 13)]
    np.testing.assert_allclose(told, [2e-2, 2e-3, 2e-4, 2e-5, 2e-5], rtol=1e-12)


def test_the_learning_rate_of_fine_tuning() -> None:
    spec = FinetuneEval(kind="finetune", epochs=10, warmup_epochs=2, lr=1e-3)
    told = {step: finetune.learning_rate(spec, step, 4) for step in (0, 3, 7, 23, 39)}
    expected = {0: 1.25e-4, 3: 5e-4, 7: 1e-3, 23: 5e-4, 39: 0.0}
    assert told == pytest.approx(expected, abs=1e-12)
    cold = FinetuneEval(kind="finetune", epochs=10, warmup_epochs=0)
    assert finetune.learning_rate(cold, 0, 10) < 1e-3


# Draws


def test_an_epoch_takes_whole_batches_of_rows_once_each() -> None:
    plan = batches(seed=0, epoch=0, num_rows=100, size=32)
    assert [len(rows) for rows in plan] == [32, 32, 32]
    assert len(set(np.concatenate(plan).tolist())) == 96
    left = set(range(100)) - set(np.concatenate(plan).tolist())
    other = set(range(100)) - set(np.concatenate(batches(0, 1, 100, 32)).tolist())
    assert left != other
    assert not np.array_equal(plan[0], batches(1, 0, 100, 32)[0])


def test_layers_are_drawn_by_seed_and_number_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    layer = linear_layer(0, 1, 64, 10)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(layer.weight, linear_layer(0, 1, 64, 10).weight)
    assert not torch.equal(layer.weight, linear_layer(0, 2, 64, 10).weight)
    assert layer.weight.abs().max() <= 1 / 8
    assert layer.weight.std().item() == pytest.approx(1 / 8 / 3**0.5, rel=0.1)


def test_a_crop_follows_from_its_sample_and_epoch(digits: Splits) -> None:
    def shown(rows: list[int], epoch: int, seed: int = 0) -> Tensor:
        (images,) = crops(digits.train, [np.asarray(rows)], seed, epoch, (0.3, 1.0))
        return images

    first = shown([3, 4, 5], 0)
    assert first.shape == (3, 3, 16, 16)
    assert torch.equal(first.flip(0), shown([5, 4, 3], 0)), "wherever in a batch it comes"
    assert torch.equal(first[1:2], shown([4], 0))
    assert not torch.equal(first, shown([3, 4, 5], 1))
    assert not torch.equal(first, shown([3, 4, 5], 0, seed=1))


# VISSL's heads


def test_a_head_of_the_probe_is_plain_sgd(encoder: Encoder, digits: Splits) -> None:
    """Against a loop of its own: the head on the last block without BatchNorm."""
    bank = Bank(encoder, digits)
    linear_sgd.linear_sgd(SGD, bank, "val", 0)
    heads = bank.once(("linear_sgd", SGD, 0), lambda: pytest.fail("it was trained"))
    layer = linear_layer(0, 0, 16, 10)
    wanted = torch.optim.SGD(layer.parameters(), lr=1, momentum=0.9, nesterov=True)
    train, labels = torch.from_numpy(bank.features("train")), torch.from_numpy(digits.train.labels)
    for epoch, rate in enumerate((0.25, 0.25, 0.025)):
        for rows in batches(0, epoch, len(train), 64):
            loss = nn.functional.cross_entropy(layer(train[rows]), labels[rows])
            decay = 5e-4 / 2 * sum((one**2).sum() for one in layer.parameters())
            wanted.param_groups[0]["lr"] = rate
            wanted.zero_grad()
            (loss + decay).backward()
            wanted.step()
    torch.testing.assert_close(heads["last"].layer.weight, layer.weight, rtol=1e-4, atol=1e-6)
    assert not torch.equal(heads["last_bn"].layer.weight, layer.weight)


def test_the_best_head_on_the_validation_split_is_reported(
    encoder: Encoder, digits: Splits
) -> None:
    bank = Bank(encoder, digits)
    (found,) = outcomes(bank, [SGD], digits, on="test", seed=0)
    heads = found.detail["heads"]
    assert set(heads) == {"last", "last_bn", "last4", "last4_bn"}
    best = max(heads, key=lambda name: heads[name]["val"])
    assert found.chosen == {"head": best}
    assert found.metrics["linear_sgd_top1"] == heads[best]["test"]
    told = found.predictions["linear_sgd_top1"]
    assert accuracy(told, digits.test.labels) == heads[best]["test"]
    assert heads["last4_bn"]["val"] > 0.3, "it learns: chance is 0.1"
    (again,) = outcomes(Bank(encoder, digits), [SGD], digits, on="test", seed=0)
    assert again.detail == found.detail


def test_batch_norms_are_not_decayed(encoder: Encoder, digits: Splits) -> None:
    heads = nn.ModuleDict({"last_bn": linear_sgd.Head(linear_sgd.HEADS["last_bn"],
                                                      linear_layer(0, 1, 16, 10), 16)})  # fmt: skip
    layers, norms = linear_sgd._optimiser(SGD, heads).param_groups
    assert (layers["weight_decay"], norms["weight_decay"]) == (5e-4, 0.0)
    assert [tuple(p.shape) for p in norms["params"]] == [(16,), (16,)]
    assert [tuple(p.shape) for p in layers["params"]] == [(10, 16), (10,)]


def test_augmented_heads_leave_the_encoder_alone(encoder: Encoder, digits: Splits) -> None:
    before, training = weights_sha256(encoder.state_dict()), encoder.training
    (found,) = outcomes(encoder, [CROPS], digits, on="val", seed=0)
    assert 0 < found.metrics["linear_sgd_top1"] < 1
    assert (weights_sha256(encoder.state_dict()), encoder.training) == (before, training)
    assert all(parameter.grad is None for parameter in encoder.parameters())
    (whole,) = outcomes(encoder, [CROPS.model_copy(update={"augment": False})], digits,
                        on="val", seed=0)  # fmt: skip
    assert whole.detail != found.detail


def test_what_has_no_blocks_has_no_such_score(digits: Splits) -> None:
    assert [one.metrics for one in outcomes(pixel_encoder(), [SGD, TUNE], digits,
                                            on="val", seed=0)] == [{}, {}]  # fmt: skip


def test_the_test_labels_choose_nothing(encoder: Encoder, digits: Splits) -> None:
    protocols = [SGD, TUNE, KnnEval(kind="knn", k=(1, 5, 50)), RobustnessEval(kind="robustness")]
    expected = outcomes(encoder, protocols, digits, on="test", seed=0)
    truth = digits.test.labels
    try:
        digits.test.labels = np.roll(truth, 7)
        found = outcomes(encoder, protocols, digits, on="test", seed=0)
    finally:
        digits.test.labels = truth
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.chosen == theirs.chosen
        assert ours.metrics != theirs.metrics
        assert ours.predictions
        for name, classes in ours.predictions.items():
            np.testing.assert_array_equal(classes, theirs.predictions[name])


# Fine-tuning


def test_fine_tuning_trains_a_copy_and_keeps_the_best_epoch(
    encoder: Encoder, digits: Splits
) -> None:
    before, positions = weights_sha256(encoder.state_dict()), encoder.vit.pos_embed.clone()
    bank = Bank(encoder, digits)
    on_val, on_test = (finetune.finetune(TUNE, bank, on, 0) for on in ("val", "test"))  # type: ignore[arg-type]
    assert weights_sha256(encoder.state_dict()) == before
    epochs = on_val.detail["val_by_epoch"]
    assert on_val.metrics["finetune_top1"] == max(epochs)
    assert on_val.detail["rows"] == len(finetune.draw_rows(digits.train.labels, TUNE, 0, 0))
    assert on_val.chosen == on_test.chosen == {"epoch": float(np.argmax(epochs) + 1)}
    tuned, *_ = bank.once(("finetune", TUNE, 0), lambda: pytest.fail("it was tuned"))
    assert torch.equal(tuned.encoder.vit.pos_embed, positions), "positions are not trained"
    assert not torch.equal(tuned.encoder.vit.patch_embed.proj.weight,
                           encoder.vit.patch_embed.proj.weight)  # fmt: skip
    again = finetune.finetune(TUNE, Bank(encoder, digits), "test", 0)
    np.testing.assert_array_equal(
        again.predictions["finetune_top1"], on_test.predictions["finetune_top1"]
    )


def test_fine_tuning_learns(encoder: Encoder, digits: Splits) -> None:
    spec = FinetuneEval(
        kind="finetune", epochs=6, warmup_epochs=1, batch_size=32, lr=4e-3, layer_decay=1,
        crop_scale=(0.8, 1),
    )  # fmt: skip
    found = finetune.finetune(spec, Bank(encoder, digits), "test", 0)
    assert found.metrics["finetune_top1"] > 0.4, "chance is 0.1"
    epochs = found.detail["val_by_epoch"]
    assert epochs[-1] > epochs[0] + 0.2


def test_layers_learn_more_slowly_the_deeper_they_lie(encoder: Encoder, digits: Splits) -> None:
    model = finetune._classifier(Bank(encoder, digits), 0)
    groups = finetune._optimiser(TUNE, model).param_groups
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    vit = model.encoder.vit
    assert scale[id(model.head.weight)] == 1
    last, first = (scale[id(vit.blocks[i].mlp.fc1.weight)] for i in (1, 0))
    assert first == pytest.approx(0.65 * last)
    assert scale[id(vit.patch_embed.proj.weight)] == pytest.approx(0.65 * first)
    assert decay[id(vit.blocks[0].mlp.fc1.weight)] == 0.05
    assert decay[id(vit.norm.weight)] == decay[id(vit.blocks[0].mlp.fc1.bias)] == 0
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert set(scale) == trained


def test_fine_tuning_can_see_few_labels() -> None:
    labels = np.repeat([0, 1, 2], 50)
    assert len(draw_rows(labels, TUNE, 0, 0)) == 60
    everything = FinetuneEval(kind="finetune")
    assert len(draw_rows(labels, everything, 0, 0)) == 150
    same = LowShotEval(kind="low_shot", per_class=20)
    np.testing.assert_array_equal(draw_rows(labels, TUNE, 0, 0), draw_rows(labels, same, 0, 0))
