"""Numbers on the noise at the published sizes, and the picture of the masks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from stoplab_platform.specs import RunSpec
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.diagnostics.masks import first_masks, masks_figure
from stoplab_trainers.diagnostics.noise import position_stats
from stoplab_trainers.diagnostics.predictions import shown
from stoplab_trainers.loop import Run, steps
from stoplab_trainers.masking import draw_masks
from stoplab_trainers.model.jepa import Jepa, build_model
from stoplab_trainers.model.positions import position_step
from support_models import Case, case
from support_runs import tiny

MAE: dict[str, Any] = {"objective": "mae", "masking": {"kind": "random", "ratio": 0.5}}


def stats(**changes: Any) -> dict[str, float]:
    return told(case(**changes))


def told(made: Case) -> dict[str, float]:
    return position_stats(made.model, made.spec, context_of(made))


@torch.no_grad()
def context_of(made: Case) -> Tensor:
    """What A is applied to."""
    features: Tensor = made.model.encoder(made.images, made.masks.context)
    return features


class TestPositionStats:
    def test_the_published_vit_b_moves_positions_by_1_15_patches(self) -> None:
        """METHOD 1.2: noise of length 2.7 against steps of 2.34."""
        spec = tiny(
            model={"encoder": "vit_base_patch16_224", "depth": 1, "predictor": {"depth": 1}},
            data__image_size=224, masking={"kind": "multiblock"},
        )  # fmt: skip
        found = position_stats(build_model(spec), spec, torch.ones(1, 768))
        assert found["stop/displacement_patches"] == pytest.approx(1.15, abs=0.02)
        assert found["stop/a_norm"] == pytest.approx(0.02 * (768 * 384) ** 0.5, rel=0.01)

    def test_the_demo_moves_them_by_1_6(self) -> None:
        sizes = {"encoder": "custom", "width": 64, "depth": 1, "heads": 2, "patch_size": 4}
        found = stats(model=sizes | {"predictor": {"width": 32, "depth": 1}, "init": "small"})
        assert found["stop/displacement_patches"] == pytest.approx(1.6, abs=0.05)
        assert found["stop/a_norm"] == pytest.approx(6.5, abs=0.2)

    def test_it_is_the_length_that_the_noise_really_has(self) -> None:
        made = case(64)
        predictor, noise = made.model.predictor, made.noise.masked
        assert noise is not None
        moved = predictor.noise(noise, predictor.embed.weight).detach()
        length = moved.square().sum(-1).mean().sqrt()
        table = predictor.pos_embed[0]
        expected = float(length / (table[1] - table[0]).norm())
        found = told(made)["stop/displacement_patches"]
        assert found == pytest.approx(expected, rel=0.05)

    def test_noise_to_signal_is_that_of_both_as_they_are(self) -> None:
        made = case(64)
        predictor, noise = made.model.predictor, made.noise.masked
        assert noise is not None
        noised = predictor.noise(noise, predictor.embed.weight).detach()
        signal = context_of(made) @ predictor.embed.weight.detach().T
        expected = float((noised.square().mean() / signal.square().mean()).sqrt())
        assert told(made)["stop/noise_to_signal"] == pytest.approx(expected, rel=0.02)

    def test_a_gain_of_the_encoders_norm_raises_the_signal(self) -> None:
        """METHOD 1.4: the way out that weight decay leaves, and the loss does not see."""
        made = case()
        before = told(made)
        with torch.no_grad():
            made.model.encoder.vit.norm.weight *= 3
        after = told(made)
        assert after["stop/noise_to_signal"] == pytest.approx(before["stop/noise_to_signal"] / 3)
        assert after["stop/norm_gain"] == pytest.approx(3 * before["stop/norm_gain"])

    def test_other_covariances(self) -> None:
        identity = stats(positions__covariance="identity", positions__noise_std=0.5)
        length = identity["stop/displacement_patches"] * position_step(16)
        assert length == pytest.approx(0.5 * 16**0.5)
        made = case(positions__covariance="untied")
        assert made.model.predictor.noise.proj is not None
        torch.nn.init.zeros_(made.model.predictor.noise.proj.weight)
        assert told(made)["stop/displacement_patches"] == 0

    def test_deterministic_positions_have_none(self) -> None:
        found = stats(positions__kind="deterministic")
        assert found["stop/noise_to_signal"] == found["stop/displacement_patches"] == 0
        assert found["stop/a_norm"] == stats()["stop/a_norm"] > 0


@pytest.mark.parametrize("changes", [{}, MAE])
def test_the_loop_measures_noise_by_what_the_predictor_was_given(
    home: Path, changes: dict[str, Any]
) -> None:
    shards = ShardSet.open("digits", home / "cache")
    told = {}
    for gain in (1.0, 3.0):
        run, passes = Run(tiny(**changes), shards), []
        with torch.no_grad():
            run.model.encoder.vit.norm.weight *= gain
        run.model.encoder.register_forward_hook(lambda *_, passes=passes: passes.append(1))
        told[gain] = next(steps(run)).metrics["stop/noise_to_signal"]
        assert len(passes) == 1  # measuring takes no pass of its own
    assert told[3.0] == pytest.approx(told[1.0] / 3, rel=0.02)


OFFICIAL: dict[str, Any] = {
    "masking": {"kind": "multiblock", "min_keep": 4, "sampler": "official"},
    "data__image_size": 32,
}


class TestFirstMasks:
    """The masks that pictures and predictions show are those that the run trains with."""

    @pytest.mark.parametrize(("workers", "rows"), [(1, 64), (4, 16)])
    def test_the_official_sampler_cuts_to_the_shortest_of_a_workers_share(
        self, workers: int, rows: int
    ) -> None:
        spec = tiny(compute__workers=workers, **OFFICIAL)
        trained = draw_masks(spec, 0, slice(0, rows))
        found = first_masks(spec, 0, 2)
        assert torch.equal(found.context, trained.context[:2])
        assert torch.equal(found.targets, trained.targets[:2])
        alone = draw_masks(spec, 0, slice(0, 2))
        assert alone.context.shape[1] > found.context.shape[1]

    def test_others_draw_rows_alone(self) -> None:
        found = first_masks(tiny(), 3, 2)
        assert torch.equal(found.context, draw_masks(tiny(), 3, slice(0, 2)).context)

    def test_predictions_are_made_under_them(self) -> None:
        made = case(2, **OFFICIAL)
        for step, look in enumerate(shown(made.model, made.spec, made.images)):
            assert torch.equal(look.masks.context, first_masks(made.spec, step, 2).context)


@pytest.fixture
def drawn(tmp_path: Path) -> tuple[RunSpec, Path]:
    spec, path = tiny(), tmp_path / "masks.png"
    images = torch.full((3, 3, 16, 16), 200, dtype=torch.uint8)
    masks_figure(spec, images, path)
    return spec, path


class TestMasksFigure:
    def test_it_is_a_picture_of_every_image_context_and_target(
        self, drawn: tuple[RunSpec, Path]
    ) -> None:
        _, path = drawn
        with Image.open(path) as picture:
            assert picture.format == "PNG"
            assert picture.width / picture.height == pytest.approx(5 / 3, rel=0.01)
            shades = picture.convert("L").histogram()
        assert shades[200] > 1000  # shown patches
        assert shades[40] > 1000  # dimmed ones

    def test_pyplot_stays_out(self, drawn: tuple[RunSpec, Path]) -> None:
        assert (
            "matplotlib.pyplot" not in sys.modules
            or not sys.modules["matplotlib.pyplot"].get_fignums()
        )

    def test_a_workers_share_is_all_that_is_shown_of_the_official_sampler(
        self, tmp_path: Path
    ) -> None:
        spec = tiny(compute__workers=32, **OFFICIAL)
        masks_figure(spec, torch.zeros(5, 3, 32, 32, dtype=torch.uint8), tmp_path / "m.png")
        with Image.open(tmp_path / "m.png") as picture:
            assert picture.width / picture.height == pytest.approx(6 / 2, rel=0.01)

    def test_more_images_than_a_batch_are_left_out(self, tmp_path: Path) -> None:
        spec = tiny(optim__batch_size=2)
        masks_figure(spec, torch.zeros(5, 3, 16, 16, dtype=torch.uint8), tmp_path / "m.png")
        with Image.open(tmp_path / "m.png") as picture:
            assert picture.width / picture.height == pytest.approx(5 / 2, rel=0.01)


def test_stats_take_the_model_as_it_is_now() -> None:
    made = case()
    model: Jepa = made.model
    before = told(made)["stop/a_norm"]
    with torch.no_grad():
        model.predictor.embed.weight *= 2
    assert told(made)["stop/a_norm"] == pytest.approx(2 * before)
