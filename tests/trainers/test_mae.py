"""MAE, and StoP on it: against plain equations, and where the noise goes."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from stoplab_platform import masks as drawing
from stoplab_platform.exits import Exit
from stoplab_platform.files import read_json
from stoplab_platform.paths import JobFolder
from stoplab_trainers import checkpoint
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.loop import Run, steps
from stoplab_trainers.main import main
from stoplab_trainers.model.mae import target_pixels
from stoplab_trainers.optim import build_optimizer
from support_models import Case, case
from support_reference import encode, linear, vit
from support_runs import tiny

MAE: dict[str, Any] = {"objective": "mae", "masking": {"kind": "random"}}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet.open("digits", tmp_path_factory.mktemp("cache"))


def plain_loss(made: Case) -> Tensor:
    """The equations, over the model's weights, the images, the masks and the noise alone."""
    weights = dict(made.model.named_parameters())
    encoder, decoder = (
        {n.removeprefix(p): w for n, w in weights.items() if n.startswith(p)}
        for p in ("encoder.vit.", "predictor.")
    )
    shown, (hidden,) = made.masks.context, made.masks.targets.unbind(1)
    heads, psi = 2, decoder["pos_embed"][0]
    visible = linear(decoder, "embed", encode(encoder, made.images, heads, shown)) + psi[shown]
    masked = psi[hidden] + decoder["mask_token"][0]
    if made.noise.masked is not None:
        std = made.spec.positions.noise_std
        masked = masked + std * made.noise.masked[:, 0] @ decoder["embed.weight"].T
    tokens = vit(decoder, "blocks", "norm", torch.cat([visible, masked], dim=1), heads)
    predicted = linear(decoder, "proj", tokens[:, shown.shape[1] :])
    squares = []
    for image, patches, guesses in zip(made.images, hidden.tolist(), predicted, strict=True):
        for patch, guess in zip(patches, guesses, strict=True):
            row, column = 4 * (patch // 4), 4 * (patch % 4)
            pixels = image[:, row : row + 4, column : column + 4].flatten()
            deviation = (pixels.var(unbiased=True) + 1e-6).sqrt()
            squares.append((guess - (pixels - pixels.mean()) / deviation) ** 2)
    return torch.cat(squares).mean()


@pytest.mark.parametrize("noise_std", [0.0, 0.25, 1.5])
def test_loss_and_gradients_are_those_of_the_equations(noise_std: float) -> None:
    made = case(**MAE, positions__noise_std=noise_std)
    ours = made.gradients()
    plain = plain_loss(made)
    assert made.loss().item() == pytest.approx(plain.item(), rel=1e-5)
    made.model.zero_grad(set_to_none=True)
    plain.backward()  # type: ignore[no-untyped-call]
    for name, parameter in made.model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(ours[name], parameter.grad, atol=1e-6), name
        else:
            assert ours[name] is None


def test_three_of_four_patches_are_masked_and_predicted_as_one_block() -> None:
    made = case(**MAE)
    assert made.masks.targets.shape == (4, 1, 12)
    assert made.masks.context.shape == (4, 4)
    assert made.predictions().shape == (4, 1, 12, 3 * 4 * 4)
    both = torch.cat([made.masks.context, made.masks.targets[:, 0]], dim=1).sort().values
    assert torch.equal(both, torch.arange(16).expand(4, -1)), "each patch is one or the other"


def test_masks_are_a_function_of_the_row() -> None:
    spec = tiny(**MAE)
    drawn = {
        (part.start, part.stop): drawing.draw(
            spec.masking, 4, seed=0, step=5, batch_size=64, rows=part
        ).targets
        for part in (slice(0, 64), slice(0, 32), slice(32, 64))
    }
    halves = [*drawn[0, 32].tolist(), *drawn[32, 64].tolist()]
    assert halves == drawn[0, 64].tolist()


def test_no_shown_token_gets_noise() -> None:
    loud, quiet = (case(**MAE, positions__noise_std=std) for std in (5.0, 0.0))
    features = [one.model.encoder(one.images, one.masks.context) for one in (loud, quiet)]
    assert torch.equal(*features)
    shown = [
        one.model.predictor.context_tokens(features[0], one.masks, one.noise)
        for one in (loud, quiet)
    ]
    assert torch.equal(*shown)
    masked = [one.model.predictor.masked_tokens(one.masks, one.noise) for one in (loud, quiet)]
    assert not torch.allclose(*masked)


def test_plain_pixels_are_the_images_own() -> None:
    made = case(**MAE)
    pixels = target_pixels(made.images, made.masks.targets, 4, normalised=False)
    first = int(made.masks.targets[1, 0, 0])
    row, column = 4 * (first // 4), 4 * (first % 4)
    cut = made.images[1, :, row : row + 4, column : column + 4]
    assert torch.equal(pixels[1, 0, 0], cut.flatten())
    even = target_pixels(made.images, made.masks.targets, 4, normalised=True)
    assert even.mean(dim=-1).abs().max() < 1e-5
    assert torch.allclose(even.var(dim=-1), torch.ones(()), atol=1e-3)


def test_noise_zero_is_mae_itself(digits: ShardSet) -> None:
    runs = [
        Run(tiny(**MAE, **changes), digits)
        for changes in ({"positions__noise_std": 0.0}, {"positions__kind": "deterministic"})
    ]
    losses = [[r.metrics["train/loss"] for r in islice(steps(run), 8)] for run in runs]
    assert losses[0] == losses[1]
    for one, other in zip(*(run.model.state_dict().values() for run in runs), strict=True):
        assert torch.equal(one, other)


def test_what_is_judged_is_the_encoder_itself(digits: ShardSet) -> None:
    run = Run(tiny(**MAE), digits)
    reports = list(islice(steps(run), 2))
    assert run.target is run.model.encoder
    assert all(parameter.requires_grad for parameter in run.target.vit.blocks.parameters())
    of_features = {"train/ema", "collapse/feature_std"}
    assert not of_features & set(reports[0].metrics)


def test_eight_images_can_be_learned() -> None:
    made = case(8, **MAE, positions__kind="deterministic", model__depth=2)
    optimizer = build_optimizer(made.model, made.spec.optim)
    losses = []
    for _ in range(120):
        loss = made.loss()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_resume_is_bit_for_bit(digits: ShardSet, tmp_path: Path) -> None:
    whole, first, second = (Run(tiny(**MAE), digits) for _ in range(3))
    losses = [r.metrics["train/loss"] for r in islice(steps(whole), 12)]
    before = [r.metrics["train/loss"] for r in islice(steps(first), 5)]
    saved = checkpoint.save(
        tmp_path, step=first.step, tensors=first.state(), identity={"run": "x"}, keep=1
    )
    second.load(*checkpoint.load(saved, identity={"run": "x"}))
    after = [r.metrics["train/loss"] for r in islice(steps(second), 7)]
    assert before + after == losses
    assert second.target is second.model.encoder
    for name, value in whole.state()["target"].items():
        assert torch.equal(second.state()["target"][name], value)


def test_a_finished_run_can_be_evaluated_again(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny(**MAE, optim__epochs=1, optim__batch_size=256, evals=[{"kind": "knn"}])
    (tmp_path / "run.yaml").write_text(spec.to_yaml())
    probe = {
        "kind": "evaluate", "name": "probe", "checkpoint": {"job": "j_train"},
        "data": {"train": "digits/train", "test": "digits/test", "val_fraction": 0.2,
                 "image_size": 16},
        "protocols": [{"kind": "knn"}],
    }  # fmt: skip
    (tmp_path / "probe.yaml").write_text(yaml.safe_dump(probe))
    found = []
    for job, file in (("j_train", "run.yaml"), ("j_probe", "probe.yaml")):
        monkeypatch.setenv("STOPLAB_JOB_ID", job)
        assert main([str(tmp_path / file)]) == Exit.OK
        summary = read_json(JobFolder(home / "jobs" / job).run("run").summary)
        found.append(summary["metrics"]["test/knn_top1"])
    assert found[0] == found[1] > 0.1
