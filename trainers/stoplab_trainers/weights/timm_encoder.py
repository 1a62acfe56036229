"""A trained encoder for timm: `timm.create_model(NAME, checkpoint_path=FILE, **ARGUMENTS)`.

The features are the mean over the patch tokens after the final norm. timm's own ViTs end in a class
token, or take the mean before their norm (`fc_norm`), so both are told otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file

from stoplab_platform.specs.model import VitSizes, vit_table
from stoplab_trainers.weights.checks import EXACT, ExportFailed, held, probe_images
from stoplab_trainers.weights.trained import Trained

log = logging.getLogger("stoplab.weights")

SAFETENSORS, TORCH = (".safetensors",), (".pth", ".pt", ".bin")
PLAIN = "vit_base_patch16_224"
"""What any plain ViT can be made from, its sizes given."""
NAMES = {"width": "embed_dim", "depth": "depth", "heads": "num_heads",
         "patch_size": "patch_size", "mlp_ratio": "mlp_ratio"}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """How timm makes the encoder: the model's name, and `create_model`'s further arguments."""

    name: str
    arguments: dict[str, Any]

    def line(self, path: Path | str) -> str:
        """Python that loads the encoder."""
        given = "".join(f", {name}={value!r}" for name, value in self.arguments.items())
        return f"timm.create_model({self.name!r}, checkpoint_path={str(path)!r}{given}).eval()"


def write_timm(trained: Trained, path: Path) -> tuple[Recipe, float]:
    """Write the encoder (safetensors, or torch by the ending) and find how timm loads it.

    Returns the recipe, and the largest difference between timm's features and ours, measured.
    Raises ExportFailed.
    """
    weights = trained.encoder
    if path.suffix in SAFETENSORS:
        save_file(weights, path, metadata={"format": "pt", **trained.provenance})
        path.chmod(0o644)  # it is written for its owner alone
    else:
        torch.save(weights, path)
    return checked(trained, path)


def checked(trained: Trained, path: Path) -> tuple[Recipe, float]:
    """The recipe by which timm loads a file to our features, and their largest difference.

    That is measured in fp32, where sums in another order differ more the deeper the encoder is.
    What is held to `EXACT` is the same in fp64.
    """
    spec = trained.spec
    images = probe_images(spec.data.image_size)
    with torch.no_grad():
        ours = trained.target.features(images)
        for recipe in recipes(spec.model.encoder, spec.model.sizes(), spec.data.image_size):
            model = _made(recipe, path)
            # Another GELU is no other weight, and hardly seen in features of a young model.
            if model is None or str(model.blocks) != str(trained.target.vit.blocks):
                continue
            difference = held(model(images), ours, "timm")
            exact = deepcopy(trained.target).double().features(images.double())
            held(model.double()(images.double()), exact, "timm", EXACT)
            return recipe, difference
    raise ExportFailed("timm makes no such encoder")


def recipes(encoder: str, sizes: VitSizes, image_size: int) -> Iterator[Recipe]:
    """What to try: the spec's own model, then a plain one with all its sizes given.

    Some of timm's names stand for more than sizes (a norm before the blocks, another GELU), which
    our encoders do not have.
    """
    fixed = {
        "img_size": image_size,
        "num_classes": 0,
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
    }
    for name in dict.fromkeys((encoder, PLAIN)):
        if name not in vit_table():
            continue
        known = {"mlp_ratio": 4.0, **vit_table()[name]}
        changed = {NAMES[n]: v for n, v in asdict(sizes).items() if known[n] != v}
        yield Recipe(name, {**fixed, **changed})


def _made(recipe: Recipe, path: Path) -> Any | None:
    """The encoder that timm loads; None where this name stands for other weights."""
    try:
        made = timm.create_model(recipe.name, checkpoint_path=str(path), **recipe.arguments)
    except (RuntimeError, TypeError) as error:
        log.debug("%s: %s", recipe.name, error)
        return None
    return made.eval()
