"""Does this code compute what the official code computed? A check against recorded numbers.

    python -m stoplab_trainers.conformance FILE.npz

Rebuilds I-JEPA and StoP (`official` parametrisation) from the file alone: sizes, weights, images,
masks and noise are in it. Prints the largest differences, each over the largest absolute value of
its reference, as JSON, and exits 0, 1 past the tolerance, or 2 where the file is not one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
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
from stoplab_trainers.optim import build_optimizer, update_ema
from stoplab_trainers.randomness import Noise

TOLERANCES = {
    "predictions": 1e-5,
    "loss": 1e-5,
    "grad": 1e-5,
    "five_losses": 1e-4,
    "after_five": 1e-4,
}
CONFIG = ("heads", "noise_std", "lr", "weight_decay", "ema")
ARRAYS = ("images", "context_index", "target_index", "unit_noise")

Arrays = Mapping[str, NDArray[Any]]


def main(argv: list[str] | None = None) -> int:
    """Runs the check; returns the exit code."""
    parser = argparse.ArgumentParser(prog="stoplab_trainers.conformance", description=__doc__)
    parser.add_argument("file", type=Path, help="recorded numbers (.npz)")
    path: Path = parser.parse_args(argv).file
    try:
        report = check(read(path))
    except DataError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report))
    return 0 if report["passed"] else 1


@dataclass(frozen=True)
class Recording:
    """A file's arrays and its settings."""

    arrays: Arrays
    config: Mapping[str, float]

    def tensor(self, name: str) -> Tensor:
        """An array as a tensor."""
        return torch.from_numpy(self.arrays[name])

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The arrays whose names begin with ``prefix``, under the rest of their names."""
        names = (name for name in self.arrays if name.startswith(prefix))
        return {name.removeprefix(prefix): self.tensor(name) for name in names}


def read(path: Path) -> Recording:
    """A recording; DataError where the file is missing, is no npz, or lacks a part."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        config = json.loads(str(arrays["config"]))
    except FileNotFoundError:
        raise DataError("no such file") from None
    except (OSError, ValueError, BadZipFile, AttributeError, KeyError) as error:
        raise DataError(f"not a recording: {error}") from error
    missing = [name for name in CONFIG if name not in config]
    missing += [name for name in ARRAYS if name not in arrays]
    missing += [
        f"{arm}/{item}"
        for arm in ("ijepa", "stop")
        for item in TOLERANCES
        if not any(name.startswith(f"{arm}/{item}") for name in arrays)
    ]
    if missing:
        raise DataError(f"not a recording: it lacks {', '.join(missing)}")
    return Recording(arrays, config)


def check(recording: Recording) -> dict[str, Any]:
    """Largest relative differences of both arms, and whether all are within the tolerances."""
    config = recording.config
    stop = StochasticPositions(
        kind="stochastic", noise_std=config["noise_std"], parametrization="official"
    )
    report: dict[str, Any] = {
        "ijepa": _differences(recording, "ijepa", DeterministicPositions(kind="deterministic")),
        "stop": _differences(recording, "stop", stop),
    }
    # written so that a NaN fails
    passed = all(arm[item] <= most for arm in report.values() for item, most in TOLERANCES.items())
    return {**report, "passed": passed}


def _differences(recording: Recording, arm: str, positions: PositionsSpec) -> dict[str, float]:
    try:
        model = _rebuilt(recording, positions)
        ours = _ours(recording, model, arm)
    except (KeyError, RuntimeError, ValueError) as error:
        raise DataError(f"cannot rebuild {arm} from this recording: {error}") from error
    return {item: _worst(recording, f"{arm}/{item}", found) for item, found in ours.items()}


def _rebuilt(recording: Recording, positions: PositionsSpec) -> Jepa:
    """The recorded start: sizes from the arrays, head counts from the settings."""
    encoder, predictor = recording.below("encoder/"), recording.below("predictor/")
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
    own = {name.removeprefix("predictor_"): value for name, value in predictor.items()}
    if model.predictor.mask_token is None:
        own.pop("mask_token", None)  # the authors' StoP holds one and never reads it
    model.predictor.load_state_dict(own)
    return model


def _depth(weights: Mapping[str, Tensor], prefix: str) -> int:
    numbers = {n.removeprefix(prefix).split(".")[0] for n in weights if n.startswith(prefix)}
    return len(numbers)


def _mlp_ratio(fc1: Tensor) -> float:
    return fc1.shape[0] / fc1.shape[1]


def _ours(recording: Recording, model: Jepa, arm: str) -> dict[str, dict[str, Tensor]]:
    """What our code makes of the recorded start, by item, under the recording's names."""
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
            grads = {n: _gradient_of(model, target, n) for n in recording.below(f"{arm}/grad/")}
            found = {"predictions": {"": rows}, "loss": {"": losses[0]}, "grad": grads}
        optimizer.step()
        update_ema(target, model.encoder, config["ema"])
    after = {n: _find(model, target, n) for n in recording.below(f"{arm}/after_five/")}
    return found | {"five_losses": {"": torch.stack(losses)}, "after_five": after}


def _forward(
    recording: Recording, model: Jepa, target: Encoder, step: int
) -> tuple[Float[Tensor, "b block n d"], Float[Tensor, ""]]:
    images = recording.tensor("images")
    targets = recording.tensor("target_index").transpose(0, 1)
    masks = TensorMasks(recording.tensor("context_index"), targets)
    noise = Noise(recording.tensor("unit_noise")[step].transpose(0, 1), None)
    predictions = cast(Tensor, model(images, masks, noise))
    return predictions, smooth_l1(predictions, target_features(target, images, targets))


def _gradient_of(model: Jepa, target: Encoder, name: str) -> Tensor:
    gradient = _find(model, target, name).grad
    if gradient is None:
        raise DataError(f"{name} takes no part in this loss")
    return gradient.clone()


def _find(model: Jepa, target: Encoder, name: str) -> Tensor:
    """A parameter under the recording's name: the predictor's begin with their module's name."""
    if name.startswith("predictor_") or name == "mask_token":
        return model.predictor.get_parameter(name.removeprefix("predictor_"))
    if name.startswith("target."):
        return cast(nn.Module, target.vit).get_parameter(name.removeprefix("target."))
    return cast(nn.Module, model.encoder.vit).get_parameter(name.removeprefix("encoder."))


def _worst(recording: Recording, item: str, found: Mapping[str, Tensor]) -> float:
    """The largest difference of an item's arrays, each over its reference's largest value."""
    gaps = []
    for name, ours in found.items():
        full = f"{item}/{name}" if name else item
        reference = recording.tensor(full).double()
        if ours.shape != reference.shape:
            raise DataError(
                f"{full} has shape {list(reference.shape)}, ours has {list(ours.shape)}"
            )
        gaps.append((ours.detach().double() - reference).abs().max() / reference.abs().max())
    return float(torch.stack(gaps).max())  # a NaN stays one


if __name__ == "__main__":
    sys.exit(main())
