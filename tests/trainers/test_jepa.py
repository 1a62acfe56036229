"""Both arms as wholes: what sigma = 0 means, targets, starts, gradients, precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stoplab_trainers.loss import smooth_l1
from stoplab_trainers.masking import TensorMasks
from stoplab_trainers.model.jepa import build_model, target_features, target_of
from stoplab_trainers.optim import build_optimizer, paired, update_ema
from stoplab_trainers.randomness import Noise
from support_models import Case, case
from support_runs import tiny


def same(first: Case, second: Case) -> bool:
    """Outputs, loss and gradients are equal to the bit."""
    ours, theirs = first.gradients(), second.gradients()
    assert ours.keys() == theirs.keys()
    pairs = [(ours[name], theirs[name]) for name in ours]
    equal = all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)
    outputs = torch.equal(first.predictions(), second.predictions())
    return equal and outputs and torch.equal(first.loss(), second.loss())


class TestSigmaZero:
    @settings(max_examples=6, deadline=None)
    @given(
        st.integers(0, 1000),
        st.sampled_from(["masked", "context", "both"]),
        st.sampled_from(["learned", "identity"]),
    )
    @pytest.mark.invariant(1)
    def test_it_is_ijepa_to_the_bit(self, seed: int, noise_on: str, covariance: str) -> None:
        ijepa = case(seed=seed, positions__kind="deterministic")
        stop = case(
            seed=seed, positions__noise_std=0.0, positions__noise_on=noise_on,
            positions__covariance=covariance,
        )  # fmt: skip
        state = torch.get_rng_state()
        assert same(stop, ijepa)
        assert torch.equal(torch.get_rng_state(), state)
        assert not same(case(seed=seed, positions__noise_std=0.25), ijepa)

    @pytest.mark.parametrize("kind", ["stochastic", "deterministic"])
    @pytest.mark.invariant(2)
    def test_official_is_ijepa_with_another_mask_token(self, kind: str) -> None:
        """METHOD 1.2: the bias with the flag on, nothing with the flag off."""
        noise_free = {"positions__noise_std": 0.0} if kind == "stochastic" else {}
        official = case(positions__kind=kind, positions__parametrization="official", **noise_free)
        ijepa = case(positions__kind="deterministic")
        token = ijepa.model.predictor.mask_token
        assert token is not None
        for predictor in (official.model.predictor, ijepa.model.predictor):
            nn.init.constant_(predictor.embed.bias, 0.3)
        nn.init.constant_(token, 0.3 if kind == "stochastic" else 0.0)
        assert torch.allclose(official.predictions(), ijepa.predictions(), atol=1e-6)


class TestNoise:
    @pytest.mark.invariant(3)
    def test_forwards_repeat_and_noise_moves_them(self) -> None:
        stop, ijepa = case(), case(positions__kind="deterministic")
        assert torch.equal(stop.predictions(), case().predictions())
        assert torch.equal(ijepa.predictions(), ijepa.predictions())
        assert stop.noise.masked is not None
        other = stop._replace(noise=Noise(-stop.noise.masked, None))
        assert not torch.equal(other.predictions(), stop.predictions())

    @pytest.mark.invariant(3)
    def test_the_encoder_never_sees_it(self) -> None:
        stop, ijepa = case(), case(positions__kind="deterministic")
        context = [c.model.encoder(c.images, c.masks.context) for c in (stop, ijepa)]
        assert torch.equal(*context)

    def test_evaluation_mode_changes_nothing(self) -> None:
        """Noise is an input: train() and eval() are the same."""
        stop = case()
        before = stop.predictions()
        stop.model.eval()
        assert torch.equal(stop.predictions(), before)


class TestTargets:
    @pytest.mark.invariant(18)
    def test_tokens_are_normalised_and_carry_no_gradient(self) -> None:
        made = case()
        found = target_features(made.model.encoder, made.images, made.masks.targets)
        assert not found.requires_grad
        assert found.mean(dim=-1).abs().max() < 1e-5
        assert (found.var(dim=-1, unbiased=False) - 1).abs().max() < 1e-3

    @pytest.mark.invariant(15, 18)
    def test_they_are_the_rows_of_the_whole_image(self) -> None:
        made = case()
        found = target_features(made.model.encoder, made.images, made.masks.targets)
        tokens = made.model.encoder(made.images).detach()
        for image, blocks in enumerate(made.masks.targets):
            for block, patches in enumerate(blocks):
                rows = tokens[image, patches]
                expected = nn.functional.layer_norm(rows, rows.shape[-1:])
                assert torch.allclose(found[image, block], expected, atol=1e-6)

    @pytest.mark.invariant(15)
    def test_predictions_and_targets_speak_of_the_same_patch(self) -> None:
        """METHOD 4.1.15: row (image, block, n) is patch targets[image, block, n] on both sides."""
        made = case()
        found = target_features(made.model.encoder, made.images, made.masks.targets)
        moved = made.masks.targets.flip(0, 1)
        assert made.noise.masked is not None
        other = made._replace(
            images=made.images.flip(0),
            masks=TensorMasks(made.masks.context.flip(0), moved),
            noise=Noise(made.noise.masked.flip(0, 1), None),
        )
        again = target_features(made.model.encoder, other.images, moved)
        assert torch.allclose(again.flip(0, 1), found, atol=1e-6)
        assert torch.allclose(other.predictions().flip(0, 1), made.predictions(), atol=1e-6)

    @pytest.mark.invariant(18)
    def test_the_students_mask_does_not_matter(self) -> None:
        made, target = case(), target_of(case().model.encoder)
        before = target_features(target, made.images, made.masks.targets)
        made.predictions()
        assert torch.equal(target_features(target, made.images, made.masks.targets), before)


class TestStart:
    @pytest.mark.parametrize("init", ["published", "small"])
    def test_both_arms_start_alike(self, init: str) -> None:
        arms = [
            build_model(tiny(model__init=init, positions__kind=kind)).state_dict()
            for kind in ("stochastic", "deterministic")
        ]
        assert arms[0].keys() == arms[1].keys()
        assert all(torch.equal(arms[0][name], arms[1][name]) for name in arms[0])

    def test_an_added_parameter_moves_no_other(self) -> None:
        plain = build_model(tiny()).state_dict()
        untied = build_model(tiny(positions__covariance="untied")).state_dict()
        assert untied.keys() - plain.keys() == {"predictor.noise.proj.weight"}
        assert all(torch.equal(untied[name], plain[name]) for name in plain)
        deeper = build_model(tiny(model__depth=3)).state_dict()
        assert all(torch.equal(deeper[name], plain[name]) for name in plain)

    def test_seeds_differ_and_repeat_without_torchs_generator(self) -> None:
        state = torch.get_rng_state()
        weights = [build_model(tiny(seed=s)).predictor.embed.weight for s in (0, 0, 1)]
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    def test_published(self) -> None:
        model = build_model(tiny(model__init="published", model__width=64))
        for name, parameter in model.named_parameters():
            if name.endswith("pos_embed"):
                assert not parameter.requires_grad
            elif parameter.ndim == 1:
                assert (parameter == (1 if "norm" in name and "weight" in name else 0)).all()
            else:
                spread = 5 / (2 * parameter.numel()) ** 0.5
                assert float(parameter.detach().std()) == pytest.approx(0.02, rel=spread)

    def test_small(self) -> None:
        model = build_model(tiny(model__init="small", model__width=64))
        patches = model.encoder.vit.patch_embed.proj.weight.detach()
        assert float(patches.std()) == pytest.approx(48**-0.5, rel=0.05)
        fc1 = model.encoder.vit.blocks[0].mlp.fc1.weight.detach()
        bound = (6 / (64 + 256)) ** 0.5
        assert 0.99 * bound < float(fc1.abs().max()) <= bound
        assert float(fc1.std()) == pytest.approx(bound / 3**0.5, rel=0.03)
        token = model.predictor.mask_token
        assert token is not None
        assert float(token.detach().std()) == pytest.approx(0.02, rel=0.7)

    def test_parameters_count_as_published(self) -> None:
        """METHOD 1.3: 11.24 million in the predictor of depth 6 behind ViT-B."""
        spec = tiny(
            model={"encoder": "vit_base_patch16_224", "depth": 1, "heads": 12},
            data__image_size=224, masking={"kind": "multiblock"},
        )  # fmt: skip
        predictor = build_model(spec).predictor
        trained = sum(p.numel() for p in predictor.parameters() if p.requires_grad)
        assert round(trained / 1e6, 2) == 11.24


MODES = [
    {"positions__kind": "deterministic"},
    {"positions__kind": "deterministic", "positions__parametrization": "official"},
    {"positions__noise_std": 0.0, "positions__covariance": "untied"},
    {"positions__noise_std": 0.0, "positions__parametrization": "official"},
    *(
        {"positions__covariance": c, "positions__noise_on": on, "positions__parametrization": p}
        for c in ("learned", "identity", "untied")
        for on in ("masked", "context", "both")
        for p in ("stoplab", "official")
    ),
]


class TestGradients:
    @pytest.mark.parametrize("mode", MODES, ids=lambda m: "-".join(map(str, m.values())))
    def test_every_trained_weight_has_one(self, mode: dict[str, Any]) -> None:
        """So that distributed training finds no unused parameter in any mode."""
        made = case(**mode)
        grads = made.gradients()
        for name, parameter in made.model.named_parameters():
            assert (grads[name] is not None) == parameter.requires_grad, name

    @pytest.mark.invariant(23)
    def test_halves_of_a_batch_average_to_the_whole(self) -> None:
        """METHOD 4.1.23: two workers' mean gradient is that of one on the joint batch."""
        whole = case(8)
        assert whole.noise.masked is not None
        expected, grads = whole.gradients(), []
        for rows in (slice(0, 4), slice(4, 8)):
            masks = TensorMasks(whole.masks.context[rows], whole.masks.targets[rows])
            part = whole._replace(
                images=whole.images[rows], masks=masks, noise=Noise(whole.noise.masked[rows], None)
            )
            grads.append(part.gradients())
        for name, gradient in expected.items():
            if gradient is not None:
                first, second = grads[0][name], grads[1][name]
                assert first is not None
                assert second is not None
                assert torch.allclose((first + second) / 2, gradient, atol=1e-7), name

    @pytest.mark.invariant(24)
    def test_eight_images_can_be_learned_without_collapse(self) -> None:
        made = case(8, model__depth=2)
        target = target_of(made.model.encoder)
        optimizer = build_optimizer(made.model, made.spec.optim)
        losses = []
        features = target_features(target, made.images, made.masks.targets)
        spread = features.flatten(0, 2).std(dim=0).mean()
        for _ in range(150):
            features = target_features(target, made.images, made.masks.targets)
            loss = smooth_l1(made.predictions(), features)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            update_ema(paired(target, made.model.encoder), 0.996)
            losses.append(loss.item())
        assert losses[-1] < 0.7 * losses[0]
        assert features.flatten(0, 2).std(dim=0).mean() > 0.1 * spread


class TestPrecision:
    @pytest.mark.invariant(25)
    def test_bf16_loss_is_close_and_its_ends_are_fp32(self) -> None:
        made = case()
        target = target_of(made.model.encoder)
        with torch.autocast("cpu", torch.bfloat16):
            features = target_features(target, made.images, made.masks.targets)
            predicted = made.predictions()
            loss = smooth_l1(predicted, features)
        assert predicted.dtype == torch.bfloat16
        assert features.dtype == loss.dtype == torch.float32
        assert made.noise.masked is not None
        assert made.noise.masked.dtype == torch.float32
        assert features.mean(dim=-1).abs().max() < 1e-5
        assert loss.item() == pytest.approx(made.loss().item(), rel=0.02)

    def test_the_loss_is_smooth_l1(self) -> None:
        found = smooth_l1(torch.tensor([0.5, 3.0, 0.0, -2.0]), torch.zeros(4))
        assert float(found) == pytest.approx((0.125 + 2.5 + 0 + 1.5) / 4)
