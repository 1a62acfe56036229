"""Numbers on the noise at the published sizes, and the picture of the masks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from stoplab_platform.specs import RunSpec
from stoplab_trainers.diagnostics.masks import masks_figure
from stoplab_trainers.diagnostics.noise import position_stats
from stoplab_trainers.model.jepa import Jepa, build_model
from support_models import case
from support_runs import tiny


def stats(**changes: Any) -> dict[str, float]:
    made = case(**changes)
    return position_stats(made.model, made.spec)


class TestPositionStats:
    def test_the_published_vit_b_moves_positions_by_1_15_patches(self) -> None:
        """METHOD 1.2: noise of length 2.7 against steps of 2.34."""
        spec = tiny(
            model={"encoder": "vit_base_patch16_224", "depth": 1, "predictor": {"depth": 1}},
            data__image_size=224, masking={"kind": "multiblock"},
        )  # fmt: skip
        found = position_stats(build_model(spec), spec)
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
        found = position_stats(made.model, made.spec)["stop/displacement_patches"]
        assert found == pytest.approx(expected, rel=0.05)

    def test_noise_to_signal_uses_the_features(self) -> None:
        made = case()
        assert stats()["stop/noise_to_signal"] == pytest.approx(0.25)
        features = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
        plain = position_stats(made.model, made.spec, features)
        assert plain["stop/noise_to_signal"] == pytest.approx(0.25, rel=0.03)
        louder = position_stats(made.model, made.spec, 2 * features)
        assert louder["stop/noise_to_signal"] == pytest.approx(plain["stop/noise_to_signal"] / 2)

    def test_other_covariances(self) -> None:
        identity = stats(positions__covariance="identity", positions__noise_std=0.5)
        assert identity["stop/noise_to_signal"] == pytest.approx(
            0.5 * 16**0.5 / identity["stop/a_norm"]
        )
        made = case(positions__covariance="untied")
        assert made.model.predictor.noise.proj is not None
        torch.nn.init.zeros_(made.model.predictor.noise.proj.weight)
        assert position_stats(made.model, made.spec)["stop/displacement_patches"] == 0

    def test_deterministic_positions_have_none(self) -> None:
        found = stats(positions__kind="deterministic")
        assert found["stop/noise_to_signal"] == found["stop/displacement_patches"] == 0
        assert found["stop/a_norm"] == stats()["stop/a_norm"] > 0


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

    def test_more_images_than_a_batch_are_left_out(self, tmp_path: Path) -> None:
        spec = tiny(optim__batch_size=2)
        masks_figure(spec, torch.zeros(5, 3, 16, 16, dtype=torch.uint8), tmp_path / "m.png")
        with Image.open(tmp_path / "m.png") as picture:
            assert picture.width / picture.height == pytest.approx(5 / 2, rel=0.01)


def test_stats_take_the_model_as_it_is_now() -> None:
    made = case()
    model: Jepa = made.model
    before = position_stats(model, made.spec)["stop/a_norm"]
    with torch.no_grad():
        model.predictor.embed.weight *= 2
    assert position_stats(model, made.spec)["stop/a_norm"] == pytest.approx(2 * before)
