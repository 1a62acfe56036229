"""Where noised positions land, the spectrum of Sigma, coverage: against plain computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stoplab_trainers.diagnostics.album import shown_patches
from stoplab_trainers.diagnostics.coverage import coverage
from stoplab_trainers.diagnostics.landing import (
    AT_ONCE,
    displacements,
    grid_distances,
    landing,
    landing_stats,
)
from stoplab_trainers.diagnostics.noise import (
    effective_rank,
    position_stats,
    spectrum,
    spectrum_stats,
)
from stoplab_trainers.masking import draw_masks
from support_models import case
from support_runs import tiny


class TestLanding:
    def test_it_is_the_share_of_draws_by_brute_force(self) -> None:
        made = case(positions__noise_std=0.6)
        table = made.model.predictor.pos_embed[0].detach().double().numpy()
        at = torch.tensor([0, 5, 10, 15])
        found = landing(made.model, made.spec, at, draws=200)
        moved = displacements(made.model, made.spec, len(at), 200).detach().double().numpy()
        wanted = np.zeros((len(at), len(table)))
        for draw in moved:
            for row, patch in enumerate(at.tolist()):
                squares = ((table[patch] + draw[row] - table) ** 2).sum(axis=1)
                wanted[row, squares.argmin()] += 1 / 200
        assert np.allclose(found.numpy(), wanted, atol=1e-6)
        assert (found > 0).sum() > len(at)  # it does move

    def test_memory_is_bounded_however_many_draws(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A batch of distances would hold a copy of the table for every draw."""
        plain, shapes = torch.cdist, []
        monkeypatch.setattr(
            torch, "cdist", lambda a, b: (shapes.append((a.shape, b.shape)), plain(a, b))[1]
        )
        made = case()
        landing(made.model, made.spec, torch.tensor([0, 5, 15]), draws=1000)
        assert len(shapes) == 2
        assert all(len(a) == len(b) == 2 and a[0] <= AT_ONCE for a, b in shapes)

    def test_the_draws_have_the_law_of_training(self) -> None:
        made = case(positions__noise_std=0.5)
        moved = displacements(made.model, made.spec, 1, 40_000).detach()[:, 0]
        a = made.model.predictor.embed.weight.detach()
        covariance = 0.25 * a @ a.T
        error = (torch.cov(moved.T) - covariance).norm() / covariance.norm()
        assert error < 0.03

    def test_stats_are_means_over_the_grid(self) -> None:
        made = case(positions__noise_std=0.6)
        at = torch.arange(16)
        shares = landing(made.model, made.spec, at, 32)
        found = landing_stats(made.model, made.spec)
        far = sum(
            float(shares[j, k]) * np.hypot(j // 4 - k // 4, j % 4 - k % 4) / 16
            for j in range(16) for k in range(16)
        )  # fmt: skip
        assert found["stop/landing_patches"] == pytest.approx(far, rel=1e-4)
        assert found["stop/landing_stays"] == pytest.approx(float(shares.diagonal().mean()))

    @pytest.mark.parametrize("noise_on", ["masked", "context", "both"])
    def test_noise_on_any_token(self, noise_on: str) -> None:
        made = case(positions__noise_on=noise_on)
        assert 0 < landing_stats(made.model, made.spec)["stop/landing_stays"] <= 1

    def test_more_noise_lands_farther(self) -> None:
        near, far = (case(positions__noise_std=std) for std in (0.1, 1.0))
        name = "stop/landing_patches"
        assert landing_stats(near.model, near.spec)[name] < landing_stats(far.model, far.spec)[name]

    def test_deterministic_positions_do_not_land_anywhere(self) -> None:
        made = case(positions__kind="deterministic")
        assert landing_stats(made.model, made.spec) == {}

    def test_distances_on_the_grid(self) -> None:
        found = grid_distances(torch.tensor([0]), 9)
        assert found[0, 8] == pytest.approx(8**0.5)
        assert found[0].reshape(3, 3)[0].tolist() == [0, 1, 2]

    @pytest.mark.parametrize("grid", [2, 3, 4, 14, 128])
    def test_the_pictured_patches_lie_on_the_grid(self, grid: int) -> None:
        found = shown_patches(grid).tolist()
        assert found == sorted(set(found))
        assert 0 <= found[0] <= found[-1] < grid * grid


class TestSpectrum:
    def test_it_is_numpys(self) -> None:
        made = case(positions__noise_std=0.3)
        a = made.model.predictor.embed.weight.detach().double().numpy()
        wanted = np.linalg.eigvalsh(0.09 * a @ a.T)[::-1]
        found = spectrum(made.model, made.spec)
        assert found is not None
        assert np.allclose(found, wanted, atol=1e-6)
        shares = wanted / wanted.sum()
        stats = spectrum_stats(found)
        assert stats["stop/sigma_rank"] == pytest.approx(
            np.exp(-(shares * np.log(shares)).sum()), rel=1e-4
        )
        assert stats["stop/sigma_top_share"] == pytest.approx(shares[0], rel=1e-4)

    def test_the_trace_is_the_square_of_the_length(self) -> None:
        made = case()
        values = spectrum(made.model, made.spec)
        assert values is not None
        table = made.model.predictor.pos_embed[0]
        step = float((table[1] - table[0]).norm())
        told = position_stats(made.model, made.spec, torch.ones(1, 16))
        found = told["stop/displacement_patches"]
        assert values.sum() ** 0.5 / step == pytest.approx(found, rel=1e-4)

    def test_a_narrow_encoder_leaves_directions_without_noise(self) -> None:
        sizes = {"encoder": "custom", "width": 8, "depth": 1, "heads": 2, "patch_size": 4}
        made = case(model=sizes | {"predictor": {"width": 16, "depth": 1}, "init": "small"})
        values = spectrum(made.model, made.spec)
        assert values is not None
        assert len(values) == 16
        assert (values[8:] == 0).all()
        assert effective_rank(values) <= 8

    def test_other_covariances(self) -> None:
        made = case(positions__covariance="identity")
        identity = spectrum(made.model, made.spec)
        assert identity is not None
        assert effective_rank(identity) == pytest.approx(16)
        for still in (case(positions__kind="deterministic"), case(positions__noise_std=0.0)):
            assert spectrum(still.model, still.spec) is None

    def test_no_variance_has_no_rank(self) -> None:
        assert effective_rank(np.zeros(4)) == 0


class TestCoverage:
    def test_the_fixed_sampler_starves_no_patch(self) -> None:
        seen = coverage(tiny())
        assert seen.faults() == []
        assert seen.context.shape == (4, 4)
        assert seen.images == 32 * 64
        # Every image has as many context patches as the maps say.
        assert seen.shortest <= seen.context.sum() <= 16
        assert 0 < seen.stats()["mask/context_coverage"] == seen.context.min()

    def test_a_large_batch_hides_no_size_of_blocks(self) -> None:
        """Sizes of blocks, and so the lengths of contexts, are drawn once a step."""
        spec = tiny(data__image_size=32, optim__batch_size=1024)
        lengths = [draw_masks(spec, step, slice(0, 1)).context.shape[1] for step in range(64)]
        assert lengths[0] > min(lengths)
        assert coverage(spec).shortest == min(lengths)

    def test_the_official_one_is_cut_as_in_training(self) -> None:
        official = {"kind": "multiblock", "min_keep": 4, "sampler": "official"}
        spec = tiny(masking=official, data__image_size=32, optim__batch_size=512)
        first = [draw_masks(spec, step, slice(0, 512)).context.shape[1] for step in range(4)]
        few = [draw_masks(spec, step, slice(0, 32)).context.shape[1] for step in range(64)]
        assert coverage(spec).shortest <= min(first)
        assert coverage(spec).context.sum() < np.mean(few)

    def test_the_official_one_never_draws_the_last_row_and_column(self) -> None:
        seen = coverage(
            tiny(masking={"kind": "multiblock", "min_keep": 4, "sampler": "official"},
                 data__image_size=32, optim__batch_size=8)
        )  # fmt: skip
        assert (seen.target[-1] == 0).all()
        assert (seen.context[:, -1] == 0).all()
        assert "15 of 64 patches are never target" in seen.faults()

    def test_short_contexts_are_told(self) -> None:
        seen = coverage(tiny(masking={"kind": "random", "ratio": 0.95}))
        assert seen.faults()[-1] == "contexts have as few as 1 of 16 patches"
