"""The position table, and the noise of StoP: its law, its place, what it does to gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stoplab_trainers.masking import TensorMasks
from stoplab_trainers.model.positions import position_step, sincos_2d
from stoplab_trainers.model.predictor import Predictor
from stoplab_trainers.randomness import Noise
from support_models import NO_NOISE, inputs, predictor


class TestTable:
    @pytest.mark.invariant(26)
    def test_golden_sums(self) -> None:
        """METHOD 4.2: width 32 on an 8 x 8 grid."""
        table = sincos_2d(32, 8).double()
        assert table.shape == (64, 32)
        assert float(table.sum()) == pytest.approx(981.729661, rel=1e-7)
        assert float(table.abs().sum()) == pytest.approx(1141.265705, rel=1e-7)

    @pytest.mark.invariant(26)
    def test_columns_come_first(self) -> None:
        table, moved = sincos_2d(32, 8), torch.tensor([0.841471, 0.310984])
        right, below = table[1], table[8]
        assert torch.allclose(right[:2], moved, atol=1e-6)
        assert torch.equal(right[16:18], torch.zeros(2))
        assert torch.allclose(below[16:18], moved, atol=1e-6)
        assert torch.equal(below[:2], torch.zeros(2))

    @pytest.mark.parametrize("width", [30, 2, 0, -4])
    @pytest.mark.invariant(26)
    def test_widths_must_divide_by_four(self, width: int) -> None:
        with pytest.raises(ValueError, match="divides by 4"):
            sincos_2d(width, 8)

    def test_a_step_has_one_length(self) -> None:
        """METHOD 1.2: 2.34 at width 384, and vectors of length sqrt(192)."""
        table = sincos_2d(384, 14)
        assert position_step(384) == pytest.approx(2.34, abs=0.005)
        for patch in (0, 30, 180):
            assert float((table[patch + 1] - table[patch]).norm()) == pytest.approx(
                position_step(384), rel=1e-5
            )
        assert torch.allclose(table.norm(dim=1), torch.tensor(192.0).sqrt())


def stretched(made: Predictor) -> Tensor:
    """Gives ``made`` a projection that is far from isotropic; returns it."""
    matrix = made.embed.weight.detach() * torch.linspace(0.2, 3, 8)[:, None]
    with torch.no_grad():
        made.embed.weight.copy_(matrix)
    return matrix.double()


def masked_samples(made: Predictor, count: int) -> tuple[Tensor, Tensor]:
    """``count`` noised tokens at patch 6, and psi of that patch; both in fp64."""
    unit = torch.randn(count, 1, 1, 12, generator=torch.Generator().manual_seed(1))
    index = torch.full((count, 1, 1), 6)
    masks = TensorMasks(torch.zeros(count, 1, dtype=torch.int64), index)
    tokens = made.masked_tokens(masks, Noise(unit, None))
    return tokens.detach().double()[:, 0, 0], made.pos_embed[0, 6].double()


class TestLaw:
    @pytest.mark.parametrize("parametrization", ["stoplab", "official"])
    @pytest.mark.invariant(4, 5)
    def test_noise_is_centred_with_covariance_std_squared_a_a_transposed(
        self, parametrization: str
    ) -> None:
        made = predictor(noise_std=0.25, parametrization=parametrization)
        matrix = stretched(made)
        samples, psi = masked_samples(made, 400_000)
        token = made.embed.bias if made.mask_token is None else made.mask_token[0, 0]
        centred = samples - psi - token.detach().double()
        errors = centred.std(dim=0) / len(centred) ** 0.5
        assert (centred.mean(dim=0).abs() < 4 * errors).all()
        covariance = centred.T.cov()
        expected = 0.25**2 * matrix @ matrix.T
        assert (covariance - expected).norm() < 0.02 * expected.norm()
        # a reading of sigma as a variance would be off four times
        assert (covariance - 0.25 * matrix @ matrix.T).norm() > 0.5 * expected.norm()

    def test_untied_noise_has_the_covariance_of_its_own_matrix(self) -> None:
        made = predictor(noise_std=0.5, covariance="untied")
        assert made.noise.proj is not None
        samples, _ = masked_samples(made, 100_000)
        own = made.noise.proj.weight.detach().double()
        expected = 0.25 * own @ own.T
        assert (samples.T.cov() - expected).norm() < 0.03 * expected.norm()

    def test_identity_noise_is_isotropic_in_predictor_width(self) -> None:
        made = predictor(noise_std=0.5, covariance="identity")
        unit = torch.randn(100_000, 1, 1, 8, generator=torch.Generator().manual_seed(2))
        index = torch.zeros(100_000, 1, 1, dtype=torch.int64)
        tokens = made.masked_tokens(TensorMasks(index[:, 0], index), Noise(unit, None))
        covariance = tokens.detach().double()[:, 0, 0].T.cov()
        assert (covariance - 0.25 * torch.eye(8)).norm() < 0.01 * 0.25 * 8**0.5 * 3


class TestPlace:
    @pytest.mark.parametrize("std", [0.0, 0.25, 5.0])
    @pytest.mark.invariant(10)
    def test_context_has_none_by_default(self, std: float) -> None:
        features, masks, noise = inputs()
        plain = predictor(kind="deterministic").context_tokens(features, masks, NO_NOISE)
        found = predictor(noise_std=std).context_tokens(features, masks, noise)
        assert torch.equal(found, plain)

    @pytest.mark.parametrize(
        ("noise_on", "context", "masked"),
        [("masked", False, True), ("context", True, False), ("both", True, True)],
    )
    def test_noise_on(self, noise_on: str, context: bool, masked: bool) -> None:
        features, masks, noise = inputs()
        plain = predictor(kind="deterministic")
        made = predictor(noise_std=0.25, noise_on=noise_on)
        shift = made.context_tokens(features, masks, noise) - plain.context_tokens(
            features, masks, NO_NOISE
        )
        assert noise.context is not None
        expected = 0.25 * noise.context @ made.embed.weight.T
        assert torch.allclose(shift, expected if context else 0 * expected, atol=1e-6)
        shift = made.masked_tokens(masks, noise) - plain.masked_tokens(masks, NO_NOISE)
        assert noise.masked is not None
        expected = 0.25 * noise.masked @ made.embed.weight.T
        assert torch.allclose(shift, expected if masked else 0 * expected, atol=1e-6)

    def test_noise_that_is_due_must_be_given(self) -> None:
        features, masks, _ = inputs()
        with pytest.raises(AssertionError, match="masked tokens"):
            predictor(noise_std=0.25)(features, masks, NO_NOISE)
        with pytest.raises(AssertionError, match="context"):
            predictor(noise_std=0.25, noise_on="context")(features, masks, NO_NOISE)

    @pytest.mark.invariant(7)
    def test_one_matrix_moves_context_and_masked_tokens(self) -> None:
        features, masks, noise = inputs()
        made = predictor(noise_std=0.25)
        assert made.noise.matrix(made.embed.weight) is made.embed.weight
        before = made.context_tokens(features, masks, noise), made.masked_tokens(masks, noise)
        with torch.no_grad():
            made.embed.weight += 0.1
        assert not torch.equal(made.context_tokens(features, masks, noise), before[0])
        assert not torch.equal(made.masked_tokens(masks, noise), before[1])

    @pytest.mark.invariant(7)
    def test_names_and_counts_are_those_of_deterministic_positions(self) -> None:
        shapes = [
            {name: tuple(p.shape) for name, p in predictor(**positions).named_parameters()}
            for positions in (
                {"kind": "deterministic"},
                {"noise_std": 0.25},
                {"noise_std": 0.25, "covariance": "identity", "noise_on": "both"},
            )
        ]
        assert shapes[0] == shapes[1] == shapes[2]
        untied = dict(predictor(noise_std=0.25, covariance="untied").named_parameters())
        assert set(untied) - set(shapes[0]) == {"noise.proj.weight"}
        official = dict(predictor(parametrization="official").named_parameters())
        assert set(shapes[0]) - set(official) == {"mask_token"}


def gradient_of_a(made: Predictor, features: Tensor, masks: TensorMasks, noise: Noise) -> Tensor:
    """Gradient at A of a loss that is not symmetric in the predictions."""
    made.zero_grad()
    predicted = made(features, masks, noise)
    weights = torch.linspace(-1, 1, predicted.numel()).reshape(predicted.shape)
    (weights * predicted + 0.3 * predicted.square()).sum().backward()
    assert made.embed.weight.grad is not None
    return made.embed.weight.grad.clone()


class TestGradient:
    @pytest.mark.invariant(8)
    def test_a_learns_from_context_and_from_noise(self) -> None:
        features, masks, noise = inputs()
        silent = torch.zeros_like(features)
        assert gradient_of_a(predictor(noise_std=0.25), silent, masks, noise).abs().sum() > 0
        assert gradient_of_a(predictor(noise_std=0.0), silent, masks, noise).abs().sum() == 0
        assert gradient_of_a(predictor(noise_std=0.0), features, masks, noise).abs().sum() > 0

    @staticmethod
    def antithetic(**positions: Any) -> tuple[Tensor, Tensor, Tensor]:
        """At A = 0: the mean gradient over noise n and -n, that of n alone, the noise-free one."""
        features, masks, noise = inputs()
        assert noise.masked is not None
        grads = []
        for unit in (noise.masked, -noise.masked, 0 * noise.masked):
            made = predictor(noise_std=0.7, **positions).double()
            tied = made.noise.matrix(made.embed.weight)
            assert tied is not None
            with torch.no_grad():
                tied.zero_()
            gradient_of_a(made, features.double(), masks, Noise(unit.double(), None))
            assert tied.grad is not None
            grads.append(tied.grad.clone())
        return (grads[0] + grads[1]) / 2, grads[0], grads[2]

    @pytest.mark.invariant(9)
    def test_tied_noise_leaves_the_mean_gradient_at_zero_alone(self) -> None:
        """METHOD 1.4: A = 0 is critical only where the context would be ignored anyway."""
        mean, single, quiet = self.antithetic()
        assert (mean - quiet).norm() < 1e-9 * quiet.norm()
        assert (single - quiet).norm() > 0.1 * quiet.norm()

    @pytest.mark.invariant(9)
    def test_untied_noise_is_at_rest_at_zero(self) -> None:
        mean, single, _ = self.antithetic(covariance="untied")
        assert mean.norm() < 1e-9 * single.norm()
