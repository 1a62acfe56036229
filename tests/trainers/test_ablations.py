"""What the paper's ablations change, each against its definition; off, nothing changes."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch.nn import functional

from stoplab_platform.specs.optim import OptimSpec, PenaltySpec
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.loop import Run, steps
from stoplab_trainers.loss import penalty
from stoplab_trainers.model.jepa import low_resolution, target_features, target_of
from stoplab_trainers.optim import Schedules
from support_models import case
from support_runs import tiny

LEARNED: dict[str, Any] = {"positions": {"kind": "deterministic", "table": "learned"}}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet.open("digits", tmp_path_factory.mktemp("cache"))


class TestLearnedTable:
    def test_starts_small_and_random_and_is_trained(self, digits: ShardSet) -> None:
        run = Run(tiny(**LEARNED), digits)
        table = run.model.predictor.learned_table
        assert table is not None
        assert table.shape == (1, 16, 16)
        assert table.std().item() == pytest.approx(0.02, rel=0.15)
        before = table.detach().clone()
        list(islice(steps(run), 2))
        assert (table.detach() != before).any(dim=-1).all(), "every patch's row has moved"

    def test_is_what_both_kinds_of_tokens_are_placed_by(self) -> None:
        made = case(**LEARNED)
        predictor, masks = made.model.predictor, made.masks
        assert predictor.learned_table is not None
        assert predictor.mask_token is not None
        psi = predictor.learned_table[0]
        features = made.model.encoder(made.images, masks.context)
        shown = predictor.context_tokens(features, masks, made.noise)
        assert torch.equal(shown, predictor.embed(features) + psi[masks.context])
        hidden = predictor.masked_tokens(masks, made.noise)
        assert torch.equal(hidden, psi[masks.targets] + predictor.mask_token)

    def test_all_other_weights_are_those_of_the_fixed_table(self, digits: ShardSet) -> None:
        fixed = Run(tiny(positions__kind="deterministic"), digits).record.certificate()
        learned = Run(tiny(**LEARNED), digits).record.certificate()
        assert learned["init/shared"] == fixed["init/shared"]
        assert learned.keys() - fixed.keys() == {"init/predictor.learned_table"}


class TestLowResolution:
    def test_each_patch_has_the_value_of_its_cell(self) -> None:
        tokens = torch.arange(16.0).reshape(1, 16, 1) ** 2
        most = low_resolution(tokens, 4, "max").reshape(4, 4)
        mean = low_resolution(tokens, 4, "bilinear").reshape(4, 4)
        for row in range(4):
            for column in range(4):
                top, left = row // 2 * 2, column // 2 * 2
                cell = tokens.reshape(4, 4)[top : top + 2, left : left + 2]
                assert most[row, column] == cell.max()
                assert mean[row, column] == pytest.approx(cell.mean().item())

    @pytest.mark.parametrize("pool", ["max", "bilinear"])
    def test_targets_are_pooled_before_they_are_normalised(self, pool: Any) -> None:
        made = case(objective={"kind": "ijepa", "target_pool": pool})
        target = target_of(made.model.encoder)
        found = target_features(target, made.images, made.masks.targets, pool)
        cells = low_resolution(target(made.images).detach(), 4, pool)
        whole = functional.layer_norm(cells, cells.shape[-1:])
        for image in range(4):
            assert torch.allclose(found[image], whole[image][made.masks.targets[image]], atol=1e-6)
        plain = target_features(target, made.images, made.masks.targets)
        assert not torch.allclose(found, plain)


class TestPenalty:
    def test_norms(self) -> None:
        matrix = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
        found = [float(penalty(matrix, PenaltySpec(norm=n, weight=0.1))) for n in ("l1", "l2")]
        assert found == pytest.approx([0.6, 1.4])

    @pytest.mark.parametrize("norm", ["l1", "l2"])
    def test_shrinks_a_and_is_told_apart_from_the_loss(self, digits: ShardSet, norm: str) -> None:
        changes: dict[str, Any] = {"positions__kind": "deterministic", "optim__lr": 3e-3}
        free = Run(tiny(**changes), digits)
        held = Run(tiny(**changes, optim__a_penalty={"norm": norm, "weight": 0.1}), digits)
        reports = [list(islice(steps(run), 10)) for run in (free, held)]
        assert reports[0][0].metrics["train/loss"] == reports[1][0].metrics["train/loss"]
        assert "train/a_penalty" not in reports[0][0].metrics
        matrix = Run(tiny(**changes), digits).model.predictor.embed.weight
        first = reports[1][0].metrics["train/a_penalty"]
        size = matrix.abs().sum() if norm == "l1" else matrix.square().sum()
        assert first == pytest.approx(0.1 * size.item(), rel=1e-5)
        norms = [run.model.predictor.embed.weight.norm().item() for run in (free, held)]
        assert norms[1] < norms[0]


class TestFrozenSchedules:
    def test_published_values_of_vit_h(self) -> None:
        """Rate and decay of amirbar/StoP@72206b3's config for ViT-H after epoch 250."""
        optim = OptimSpec(
            epochs=300, warmup_epochs=40, lr=1e-3, final_lr=1e-6, freeze_after_epoch=250
        )
        schedules, free = Schedules(optim, 10), Schedules(
            optim.model_copy(update={"freeze_after_epoch": None}), 10
        )  # fmt: skip
        for step in (2500, 2501, 3000):
            assert schedules.lr(step) == pytest.approx(8.94e-5, rel=1e-3)
            assert schedules.weight_decay(step) == pytest.approx(0.3759, rel=1e-3)
        assert all(schedules.lr(step) == free.lr(step) for step in range(1, 2501))
        assert schedules.momentum(3000) == free.momentum(3000), "the moving average goes on"
