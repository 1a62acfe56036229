"""Recorded numbers of the official code (.npz): reading them, and finding the recorded start.

A recording holds under ``encoder/`` and ``predictor/`` the weights that both arms start from. The
published reference, `golden/reference.npz`, holds there what one arm had become after its five
steps (the arrays were views of the weights being trained). Its start follows from the rule that
its weights, images and noise were all drawn by: NumPy's ``RandomState(crc32(tag))``. `start` uses
that rule where, and only where, the recorded weights are an arm's end to the bit and lie within
five steps of what the rule draws; the recorded weights then are one more thing to arrive at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stoplab_platform.errors import DataError

ARMS = ("ijepa", "stop")
ITEMS = ("predictions", "loss", "grad", "five_losses", "after_five")
CONFIG = ("heads", "noise_std", "lr", "weight_decay", "ema")
ARRAYS = {
    "images": "image channel row column",
    "context_index": "image patch",
    "target_index": "block image patch",
    "unit_noise": "step block image patch channel",
}
TAGS = {"encoder/": "enc.", "predictor/": "pred."}
REACH = 1.5  # learning rates that AdamW moves a weight a step, at most


@dataclass(frozen=True)
class Recording:
    """A file's arrays and its settings."""

    arrays: Mapping[str, NDArray[Any]]
    config: Mapping[str, Any]

    def tensor(self, name: str) -> Tensor:
        """An array as a tensor of its own."""
        return torch.from_numpy(np.array(self.arrays[name]))

    def below(self, prefix: str) -> dict[str, Tensor]:
        """The arrays whose names begin with ``prefix``, under the rest of their names."""
        names = (name for name in self.arrays if name.startswith(prefix))
        return {name.removeprefix(prefix): self.tensor(name) for name in names}


@dataclass(frozen=True)
class Start:
    """Where the recorded training began.

    Attributes:
        encoder: weights under the recording's names.
        predictor: likewise.
        ended: the arm whose end the recorded weights are; None where they are the start.
    """

    encoder: dict[str, Tensor]
    predictor: dict[str, Tensor]
    ended: str | None


def read(path: Path) -> Recording:
    """A recording; DataError where the file is missing, is no npz, or lacks a part."""
    if not path.is_file():
        raise DataError("no such file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        config = json.loads(str(arrays["config"]))
    except (OSError, ValueError, BadZipFile, AttributeError, KeyError, TypeError) as error:
        raise DataError(f"not a recording of the reference ({error})") from error
    missing = [f"config {name!r}" for name in CONFIG if name not in config]
    missing += [name for name in ARRAYS if name not in arrays]
    for prefix in (*TAGS, *(f"{arm}/{item}" for arm in ARMS for item in ITEMS)):
        if not any(name.startswith(prefix) for name in arrays):
            missing.append(prefix)
    if missing:
        raise DataError(f"not a recording of the reference: it lacks {', '.join(missing)}")
    for name, axes in ARRAYS.items():
        if arrays[name].ndim != len(axes.split()):
            shape = list(arrays[name].shape)
            raise DataError(f"{name} has shape {shape}, its axes should be [{axes}]")
    return Recording(arrays, config)


def start(recording: Recording) -> Start:
    """The weights that both arms begin with; DataError where the file does not tell."""
    ended = next((arm for arm in ARMS if _is_end_of(recording, arm)), None)
    encoder, predictor = (recording.below(prefix) for prefix in TAGS)
    if ended is None:
        return Start(encoder, predictor, None)
    return Start(
        {name: _redrawn(recording, "encoder/", name) for name in encoder},
        {name: _redrawn(recording, "predictor/", name) for name in predictor},
        ended,
    )


def _is_end_of(recording: Recording, arm: str) -> bool:
    """Whether the recorded weights are what ``arm`` recorded after its steps, bit for bit."""
    ends = recording.below(f"{arm}/after_five/")
    own = {name: value for name, value in ends.items() if not name.startswith("target.")}
    weights = {f"encoder.{name}": value for name, value in recording.below("encoder/").items()}
    weights |= recording.below("predictor/")
    return bool(own) and all(torch.equal(weights[n], v) for n, v in own.items() if n in weights)


def _redrawn(recording: Recording, prefix: str, name: str) -> Tensor:
    recorded = recording.tensor(prefix + name)
    if name.endswith("pos_embed"):
        return recorded  # never trained
    shape = tuple(recorded.shape)
    source = np.random.RandomState(crc32(f"{TAGS[prefix]}{name}".encode()))
    values = source.standard_normal(shape) * (0.05 if len(shape) > 1 else 0.02)
    if "norm" in name and name.endswith("weight"):
        values = values + 1
    drawn = torch.from_numpy(values.astype(np.float32))
    reach = REACH * recording.config["lr"] * len(recording.arrays["unit_noise"])
    if float((drawn - recorded).abs().max()) > reach:
        raise DataError(
            f"{prefix}{name} was recorded after the training steps, not before them, and does "
            "not follow from its name: the start cannot be rebuilt"
        )
    return drawn
