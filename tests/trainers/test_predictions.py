"""Predictions under noise against a plain loop over draws; what the pictures' axes hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from stoplab_trainers.diagnostics import canvas, pictures, predictions
from stoplab_trainers.diagnostics.coverage import Coverage
from stoplab_trainers.diagnostics.landing import noise_of
from stoplab_trainers.diagnostics.predictions import MASKS, Predicted, predicted, shown
from stoplab_trainers.masking import TensorMasks, draw_masks
from stoplab_trainers.objective import objective_of
from support_models import Case, case


def found_in(made: Case, draws: int) -> Predicted:
    objective = objective_of(made.spec)
    target = objective.target(made.model.encoder)
    looks = shown(made.model, made.spec, made.images)
    return predicted(made.model, target, made.spec, made.images, looks, draws)


@torch.no_grad()
def by_hand(made: Case, image: int, draws: int) -> dict[str, np.ndarray[Any, Any]]:
    """Error, zero and spread of one image's patches, one draw at a time, in float64."""
    objective, spec = objective_of(made.spec), made.spec
    target = objective.target(made.model.encoder)
    values: dict[str, list[list[float]]] = {
        name: [[] for _ in range(spec.grid**2)] for name in ("error", "zero", "spread")
    }
    for step in range(MASKS):
        masks = TensorMasks(*(m[image : image + 1] for m in draw_masks(spec, step, slice(0, 4))))
        pixels = made.images[image : image + 1]
        wanted = objective.targets(target, pixels, masks)[0].double().numpy()
        features = made.model.encoder(pixels, masks.context)
        noises = [
            noise_of(spec, step, slice(d, d + 1), masks.context.shape[1], *masks.targets.shape[1:],
                     torch.device("cpu"))
            for d in range(draws)
        ]  # fmt: skip
        found = np.stack(
            [made.model.predictor(features, masks, noise)[0].double().numpy() for noise in noises]
        )
        rms = {
            "error": np.sqrt(((found.mean(axis=0) - wanted) ** 2).mean(axis=-1)),
            "zero": np.sqrt((wanted**2).mean(axis=-1)),
            "spread": np.sqrt(found.var(axis=0, ddof=min(draws - 1, 1)).mean(axis=-1)),
        }
        for name, one in rms.items():
            for patch, value in zip(masks.targets.flatten().tolist(), one.flatten(), strict=True):
                values[name][patch].append(float(value))
    return {
        name: np.array([np.mean(v) if v else np.nan for v in of]) for name, of in values.items()
    }


MAE = {
    "objective": {"kind": "mae", "normalise_pixels": False},
    "masking": {"kind": "random", "ratio": 0.2},
}


@pytest.mark.parametrize("changes", [{}, MAE])
@pytest.mark.parametrize("at_once", [32, 3])  # more and fewer than the draws
def test_predictions_are_those_of_a_plain_loop(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], at_once: int
) -> None:
    monkeypatch.setattr(predictions, "AT_ONCE", at_once)
    made = case(positions__noise_std=0.6, **changes)
    found = found_in(made, draws=8)
    assert found.spread is not None
    for image in (0, 3):
        wanted = by_hand(made, image, draws=8)
        for name in wanted:
            told = getattr(found, name)[image].numpy()
            assert np.allclose(told, wanted[name], rtol=1e-4, equal_nan=True), name
    assert (torch.nan_to_num(found.spread) > 0).any()


def test_many_draws_are_not_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    made, sizes = case(), []
    made.model.predictor.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    found_in(made, draws=70)
    assert max(sizes) == predictions.AT_ONCE < 70
    assert sum(sizes) == 70 * MASKS * len(made.images)


def test_predicting_nothing_has_the_size_of_the_targets() -> None:
    assert float(found_in(case(), 2).zero.nanmean()) == pytest.approx(1, abs=1e-2)
    pixels = case(**MAE)
    pixels.images.mul_(2)
    assert float(found_in(pixels, 2).zero.nanmean()) == pytest.approx(2, abs=2e-2)


def test_positions_without_noise_have_no_spread() -> None:
    made = case(positions__kind="deterministic")
    found = found_in(made, draws=8)
    assert found.spread is None
    plain, noisy = by_hand(made, 1, draws=1), found.error[1].numpy()
    assert np.allclose(noisy, plain["error"], rtol=1e-4, equal_nan=True)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that would be written."""
    figures: list[Figure] = []
    monkeypatch.setattr(canvas, "save", lambda made, path: figures.append(made))
    return figures


NOWHERE = Path("nowhere.png")
TWO_TONES = torch.cat([torch.zeros(3, 16, 8), torch.full((3, 16, 8), 255)], dim=2).byte()


def drawn_pixel(made: Figure, axis: Any, column: float, row: float) -> list[int]:
    """The colour on the paper at a place of an image."""
    paper = np.asarray(made.canvas.buffer_rgba())  # type: ignore[attr-defined]
    x, y = axis.transData.transform((column, row))
    return [int(c) for c in paper[int(len(paper) - y), int(x)]]


def test_colours_are_those_of_the_bar_on_dark_and_on_light_images(kept: list[Figure]) -> None:
    values = torch.full((1, 16), 0.5)
    values[0, 0] = 1.0
    values[0, 15] = torch.nan
    found = Predicted(values, values, None)
    pictures.predictions_picture(TWO_TONES[None], found, 1, NOWHERE)
    (made,) = kept
    made.canvas.draw()
    axis = made.axes[1]
    below, drawn = axis.images
    expected = [int(c) for c in drawn.to_rgba(0.5, bytes=True)]
    assert drawn_pixel(made, axis, 2, 10) == expected  # on black
    assert drawn_pixel(made, axis, 14, 2) == expected  # on white
    assert drawn_pixel(made, axis, 14, 14) == [255] * 4  # the bare patch shows the image
    assert below.get_array().max() == 255


def test_the_maps_of_predictions_lie_as_the_patches_do(kept: list[Figure]) -> None:
    error = torch.arange(32.0).reshape(2, 16)
    error[1, 15] = torch.nan
    zero = torch.full((2, 16), 0.25)
    found = Predicted(error, zero, 0.5 * error)
    pictures.predictions_picture(torch.stack([TWO_TONES] * 2), found, 8, NOWHERE)
    (made,) = kept
    maps = [axis.images[-1] for axis in np.array(made.axes[:6]).reshape(2, 3)[:, 1]]
    assert maps[0].get_array()[1, 2] == error[0, 6]
    assert maps[1].get_array().mask.tolist() == error[1].isnan().reshape(4, 4).tolist()
    assert {one.norm.vmax for one in maps} == {30.0}  # one scale for all images
    assert made.axes[2].images[-1].norm.vmax == 15.0
    assert maps[0].get_extent() == made.axes[0].images[0].get_extent()
    assert "predicting 0 has 0.25" in made.get_suptitle()


def test_the_maps_of_positions_and_coverage_lie_as_the_patches_do(kept: list[Figure]) -> None:
    shares = torch.zeros(1, 16)
    shares[0, 6], shares[0, 1] = 0.9, 0.1
    pictures.positions_picture(
        TWO_TONES, torch.tensor([6]), shares, np.ones(4), "title", NOWHERE
    )  # fmt: skip
    drawn = kept[0].axes[0].images[-1]
    assert drawn.get_array()[1, 2] == pytest.approx(0.9)
    assert drawn.get_array()[0, 1] == pytest.approx(0.1)
    assert drawn.get_array().mask.sum() == 14  # never nearest: bare
    assert drawn.norm.vmax == 1.0
    (frame,) = kept[0].axes[0].patches
    assert frame.get_xy() == (7.5, 3.5)
    context = np.arange(16.0).reshape(4, 4) / 20
    pictures.coverage_picture(Coverage(context, context.T / 2, 3, 64), NOWHERE)
    left, right = (axis.images[0] for axis in kept[1].axes[:2])
    assert np.array_equal(left.get_array(), context)
    assert np.array_equal(right.get_array(), context.T / 2)
    assert (left.norm.vmax, right.norm.vmax) == (0.75, 0.375)
