"""Schedules at the published steps, parameter groups, and the moving average."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stoplab_platform.specs.optim import OptimSpec
from stoplab_trainers.loss import smooth_l1
from stoplab_trainers.masking import draw_masks
from stoplab_trainers.model.jepa import build_model, target_features, target_of
from stoplab_trainers.optim import (
    Schedules,
    build_optimizer,
    paired,
    param_groups,
    set_step,
    update_ema,
)
from stoplab_trainers.randomness import draw_noise
from support_runs import tiny

# METHOD 4.2: ten steps an epoch, four epochs, one of warm-up
GOLDEN = OptimSpec(epochs=4, warmup_epochs=1, lr=1e-3, start_lr=2e-4, final_lr=1e-6)
STEPS = (1, 9, 10, 11, 25, 40)


class TestSchedules:
    @pytest.mark.invariant(19, 20)
    def test_golden_steps(self) -> None:
        schedules = Schedules(GOLDEN, 10)
        assert schedules.total_steps == 40
        rates = [schedules.lr(step) for step in STEPS]
        assert rates == pytest.approx([2.8e-4, 9.2e-4, 1e-3, 9.972637e-4, 5.005e-4, 1e-6])
        decays = [schedules.weight_decay(step) for step in STEPS]
        golden = [0.04055488, 0.08312693, 0.09272078, 0.10309935, 0.28888302, 0.4]
        assert decays == pytest.approx(golden, rel=1e-6)
        momenta = [schedules.momentum(step) for step in STEPS]
        assert momenta == pytest.approx([0.996, 0.9968, 0.9969, 0.997, 0.9984, 0.9999])

    @given(st.integers(1, 20), st.integers(1, 50), st.floats(0, 1))
    def test_ends_and_bounds(self, epochs: int, per_epoch: int, warmup: float) -> None:
        optim = OptimSpec(epochs=epochs, warmup_epochs=warmup * epochs, lr=1e-3, final_lr=1e-5)
        schedules = Schedules(optim, per_epoch)
        steps = range(1, schedules.total_steps + 1)
        assert all(1e-5 <= schedules.lr(step) <= 1e-3 for step in steps)
        assert schedules.momentum(1) == optim.ema[0]
        assert schedules.momentum(steps[-1]) < optim.ema[1]
        assert schedules.weight_decay(steps[-1]) == pytest.approx(optim.weight_decay[1])
        if schedules.warmup_steps < schedules.total_steps:
            assert schedules.lr(steps[-1]) == pytest.approx(1e-5)


class TestOptimizer:
    @pytest.mark.invariant(20)
    def test_biases_and_vectors_alone_go_without_decay(self) -> None:
        model = build_model(tiny())
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        decayed, plain = ({names[id(p)] for p in g["params"]} for g in param_groups(model))
        assert all(name.endswith(".bias") or "norm" in name for name in plain)
        assert {"predictor.mask_token", "predictor.embed.weight"} <= decayed
        assert not any("norm" in name or "bias" in name for name in decayed)
        frozen = {"encoder.vit.pos_embed", "predictor.pos_embed"}
        assert decayed | plain | frozen == set(names.values())

    def test_set_step_spares_the_second_group(self) -> None:
        optimizer = build_optimizer(build_model(tiny()), GOLDEN)
        set_step(optimizer, Schedules(GOLDEN, 10), 25)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([5.005e-4] * 2)
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        assert decays == pytest.approx([0.28888302, 0])

    @pytest.mark.invariant(20)
    def test_position_tables_stay_over_a_hundred_steps(self) -> None:
        spec = tiny()
        model, images = build_model(spec), torch.randn(4, 3, 16, 16)
        target = target_of(model.encoder)
        optimizer, schedules = build_optimizer(model, spec.optim), Schedules(spec.optim, 50)
        before = copy.deepcopy(model.state_dict())
        for step in range(1, 101):
            set_step(optimizer, schedules, step)
            masks = draw_masks(spec, step, slice(0, 4))
            noise = draw_noise(
                spec, step, slice(0, 4), masks.context.shape[1], *masks.targets.shape[1:], "cpu"
            )
            loss = smooth_l1(
                model(images, masks, noise), target_features(target, images, masks.targets)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            update_ema(paired(target, model.encoder), schedules.momentum(step))
        after = model.state_dict()
        unchanged = {name for name in before if torch.equal(before[name], after[name])}
        assert unchanged == {"encoder.vit.pos_embed", "predictor.pos_embed"}
        assert torch.equal(target.vit.pos_embed, before["encoder.vit.pos_embed"])


class TestEma:
    @given(st.floats(0, 1), st.integers(0, 1000))
    @pytest.mark.invariant(19)
    def test_one_update_is_the_weighted_mean(self, momentum: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        own, new = torch.randn(2, 5, 3, generator=generator)
        target, encoder = nn.Linear(3, 5, bias=False), nn.Linear(3, 5, bias=False)
        with torch.no_grad():
            target.weight.copy_(own)
            encoder.weight.copy_(new)
        update_ema(paired(target, encoder), momentum)
        expected = momentum * own.double() + (1 - momentum) * new.double()
        assert (target.weight.double() - expected).abs().max() < 1e-6
        assert torch.equal(encoder.weight, new)

    @pytest.mark.invariant(19)
    def test_small_moves_are_not_rounded_away(self) -> None:
        target, encoder = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        nn.init.ones_(target.weight)
        nn.init.zeros_(encoder.weight)
        for _ in range(1000):
            update_ema(paired(target, encoder), 0.9999)
        assert float(target.weight.detach()) == pytest.approx(0.9999**1000, rel=1e-4)

    @pytest.mark.invariant(19)
    def test_a_half_precision_target_is_refused(self) -> None:
        target = nn.Linear(1, 1).bfloat16()
        with pytest.raises(AssertionError, match="bf16"):
            update_ema(paired(target, nn.Linear(1, 1)), 0.99)

    def test_the_target_is_a_frozen_copy(self) -> None:
        model = build_model(tiny())
        target = target_of(model.encoder)
        assert not any(parameter.requires_grad for parameter in target.parameters())
        for own, new in zip(target.parameters(), model.encoder.parameters(), strict=True):
            assert torch.equal(own, new)
            assert own.data_ptr() != new.data_ptr()
