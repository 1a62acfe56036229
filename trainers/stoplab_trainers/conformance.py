"""Does this code compute what the official code computed? A check against recorded numbers.

    python -m stoplab_trainers.conformance FILE.npz

Rebuilds I-JEPA and StoP (`official` parametrisation) from the file alone (recordings.py) and
prints the largest differences, each over the largest absolute value of its reference, as JSON.
Exits 0, 1 past a tolerance, or 2 with a reason where the file is no recording.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stoplab_platform.errors import DataError
from stoplab_platform.specs.model import VitSizes
from stoplab_platform.specs.optim import OptimSpec
from stoplab_platform.specs.positions import (
    DeterministicPositions,
    PositionsSpec,
    StochasticPositions,
)
from stoplab_trainers.loss import smooth_l1
from stoplab_trainers.masking import TensorMasks
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import Jepa, target_features, target_of
from stoplab_trainers.model.predictor import Predictor
from stoplab_trainers.optim import build_optimizer, paired, update_ema
from stoplab_trainers.randomness import Noise
from stoplab_trainers.recordings import Recording, Start, read, start
from stoplab_trainers.weights.names import MASK_TOKEN, PREDICTOR, predictor_ours, renamed

TOLERANCES = {
    "predictions": 1e-5,
    "loss": 1e-5,
    "grad": 1e-5,
    "five_losses": 1e-4,
    "after_five": 1e-4,
}


def main(argv: list[str] | None = None) -> int:
    """Runs the check; returns the exit code."""
    parser = argparse.ArgumentParser(prog="stoplab_trainers.conformance", description=__doc__)
    parser.add_argument("file", type=Path, help="recorded numbers (.npz)")
    path: Path = parser.parse_args(argv).file
    try:
        recording = read(path)
        begin = start(recording)
        report = check(recording, begin)
    except DataError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 2
    if begin.ended is not None:
        note = f"the recorded weights are {begin.ended}'s after its steps; start redrawn by name"
        print(f"note: {note}", file=sys.stderr)
    print(json.dumps(report))
    return 0 if report["passed"] else 1


def check(recording: Recording, begin: Start) -> dict[str, Any]:
    """Largest relative differences of both arms, and whether all are within the tolerances."""
    stop = StochasticPositions(
        kind="stochastic", noise_std=recording.config["noise_std"], parametrization="official"
    )
    report: dict[str, Any] = {
        "ijepa": _differences(
            recording, begin, "ijepa", DeterministicPositions(kind="deterministic")
        ),
        "stop": _differences(recording, begin, "stop", stop),
    }
    # written so that a NaN fails
    passed = all(arm[item] <= most for arm in report.values() for item, most in TOLERANCES.items())
    return {**report, "passed": passed}


def _differences(
    recording: Recording, begin: Start, arm: str, positions: PositionsSpec
) -> dict[str, float]:
    try:
        model = _rebuilt(recording, begin, positions)
        found = _found(recording, model, arm, begin.ended == arm)
        return {item: _worst(recording, ours) for item, ours in found.items()}
    except (AttributeError, IndexError, KeyError, RuntimeError, ValueError) as error:
        raise DataError(f"cannot rebuild {arm} from this recording: {error}") from error


def _rebuilt(recording: Recording, begin: Start, positions: PositionsSpec) -> Jepa:
    """The model at its start: sizes from the arrays, head counts from the settings."""
    encoder, predictor = begin.encoder, begin.predictor
    width, _, patch_size, _ = encoder["patch_embed.proj.weight"].shape
    heads = int(recording.config["heads"])
    sizes = VitSizes(
        width=width,
        depth=_depth(encoder, "blocks."),
        heads=heads,
        patch_size=patch_size,
        mlp_ratio=_mlp_ratio(encoder["blocks.0.mlp.fc1.weight"]),
    )
    student = Encoder(sizes, recording.arrays["images"].shape[-1])
    model = Jepa(
        student,
        Predictor(
            positions,
            encoder_width=width,
            width=predictor["predictor_embed.weight"].shape[0],
            depth=_depth(predictor, "predictor_blocks."),
            heads=int(recording.config.get("predictor_heads", heads)),
            grid=student.grid,
            mlp_ratio=_mlp_ratio(predictor["predictor_blocks.0.mlp.fc1.weight"]),
        ),
    )
    model.encoder.vit.load_state_dict(encoder)
    own = renamed(predictor, predictor_ours)
    if model.predictor.mask_token is None:
        own.pop(MASK_TOKEN, None)  # the authors' StoP holds one and never reads it
    model.predictor.load_state_dict(own)
    return model


def _depth(weights: Mapping[str, Tensor], prefix: str) -> int:
    numbers = {n.removeprefix(prefix).split(".")[0] for n in weights if n.startswith(prefix)}
    return len(numbers)


def _mlp_ratio(fc1: Tensor) -> float:
    """The ratio that timm rounds down to the recorded rows."""
    return (fc1.shape[0] + 0.5) / fc1.shape[1]


def _found(
    recording: Recording, model: Jepa, arm: str, ended: bool
) -> dict[str, dict[str, Tensor]]:
    """What our code makes of the start, by item, under the names of the recorded arrays."""
    config = recording.config
    decay = (config["weight_decay"], config["weight_decay"])
    optimizer = build_optimizer(model, OptimSpec(lr=config["lr"], weight_decay=decay))
    target = target_of(model.encoder)
    found: dict[str, dict[str, Tensor]] = {}
    losses = []
    for step in range(len(recording.arrays["unit_noise"])):
        predictions, loss = _forward(recording, model, target, step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
        if step == 0:
            rows = predictions.detach().transpose(0, 1).flatten(0, 1)  # (block, image)
            found["predictions"] = {f"{arm}/predictions": rows}
            found["loss"] = {f"{arm}/loss": losses[0]}
            found["grad"] = _gradients(recording, model, target, f"{arm}/grad/")
        optimizer.step()
        update_ema(paired(target, model.encoder), config["ema"])
    found["five_losses"] = {f"{arm}/five_losses": torch.stack(losses)}
    after = f"{arm}/after_five/"
    found["after_five"] = {after + n: _find(model, target, n) for n in recording.below(after)}
    if ended:  # matrices alone: a key's bias has no gradient, so Adam steps by rounding errors
        found["after_five"] |= {
            prefix + name: _find(model, target, name)
            for prefix in ("encoder/", "predictor/")
            for name, value in recording.below(prefix).items()
            if value.ndim > 1
        }
    return found


def _forward(
    recording: Recording, model: Jepa, target: Encoder, step: int
) -> tuple[Float[Tensor, "b block n d"], Float[Tensor, ""]]:
    images = recording.tensor("images")
    targets = recording.tensor("target_index").transpose(0, 1)
    masks = TensorMasks(recording.tensor("context_index"), targets)
    noise = Noise(recording.tensor("unit_noise")[step].transpose(0, 1), None)
    predictions = cast(Tensor, model(images, masks, noise))
    return predictions, smooth_l1(predictions, target_features(target, images, targets))


def _gradients(
    recording: Recording, model: Jepa, target: Encoder, prefix: str
) -> dict[str, Tensor]:
    gradients = {}
    for name in recording.below(prefix):
        gradient = _find(model, target, name).grad
        if gradient is None:
            raise DataError(f"{name} takes no part in this loss")
        gradients[prefix + name] = gradient.clone()
    return gradients


def _find(model: Jepa, target: Encoder, name: str) -> Tensor:
    """A parameter under the recording's name: the predictor's begin with their module's name."""
    if name.startswith(PREDICTOR) or name == MASK_TOKEN:
        return model.predictor.get_parameter(predictor_ours(name))
    if name.startswith("target."):
        return cast(nn.Module, target.vit).get_parameter(name.removeprefix("target."))
    return cast(nn.Module, model.encoder.vit).get_parameter(name.removeprefix("encoder."))


def _worst(recording: Recording, found: Mapping[str, Tensor]) -> float:
    """The largest difference of an item's arrays, each over its reference's largest value."""
    gaps = []
    for name, ours in found.items():
        reference = recording.tensor(name).double()
        if ours.shape != reference.shape:
            shapes = f"{list(reference.shape)}, ours has {list(ours.shape)}"
            raise DataError(f"{name} has shape {shapes}")
        gaps.append((ours.detach().double() - reference).abs().max() / reference.abs().max())
    return float(torch.stack(gaps).max())  # a NaN stays one


if __name__ == "__main__":
    sys.exit(main())
