"""What the target encoder makes of a few fixed images: spread, rank, places, drift."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from torch import Tensor
from torch.nn import functional as F

from stoplab_platform.errors import DataError
from stoplab_trainers.data.decode import BadImage, decoded, whole
from stoplab_trainers.data.jpeg import Pixels
from stoplab_trainers.data.loader import normalise
from stoplab_trainers.data.shards import ShardSet
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import TARGET_EPS

IMAGES = 256  # whose pooled features are looked at
PATCH_IMAGES = 64  # whose patches are looked at: half to fit on, half to judge
BATCH = 64
RIDGE = 1.0
RANKME_EPS = 1e-7


@dataclass(frozen=True)
class Look:
    """Normalised target features of the probe's images, in fp32 on the CPU."""

    pooled: Float[Tensor, "n d"]
    """Mean over an image's patches."""
    patches: Float[Tensor, "m patch d"]
    """All patches of the first images."""

    @property
    def is_finite(self) -> bool:
        """Whether all features are numbers."""
        return bool(torch.isfinite(self.pooled).all())


class Probe:
    """The first images of a set, shown whole."""

    def __init__(self, images: UInt8[Tensor, "n 3 h w"]) -> None:
        self.images = images

    @classmethod
    def of(cls, shards: ShardSet, image_size: int) -> Probe:
        """The probe of a run."""
        return cls(first_images(shards, image_size, IMAGES))

    @torch.no_grad()
    def look(self, encoder: Encoder) -> Look:
        """The features, each token normalised over its channels as the targets are."""
        device = next(encoder.parameters()).device
        pooled: list[Tensor] = []
        kept: list[Tensor] = []
        for images in torch.split(self.images, BATCH):
            tokens = encoder(normalise(images.to(device))).float()
            tokens = F.layer_norm(tokens, tokens.shape[-1:], eps=TARGET_EPS)
            pooled.append(tokens.mean(dim=1).cpu())
            if len(kept) * BATCH < PATCH_IMAGES:
                kept.append(tokens.cpu())
        return Look(torch.cat(pooled), torch.cat(kept)[:PATCH_IMAGES])


def first_images(shards: ShardSet, image_size: int, count: int) -> UInt8[Tensor, "n 3 side side"]:
    """The first readable images of a set, shown whole; fewer where it holds fewer."""
    found = list(islice(_readable(shards), count))
    if not found:
        raise DataError("no image of the set can be read")
    return torch.stack([whole(image, image_size) for image in found])


def _readable(shards: ShardSet) -> Iterator[Pixels]:
    for sample in range(len(shards)):
        with suppress(BadImage):  # told and counted where it is trained on
            yield decoded(shards, sample)


def features_stats(look: Look, start: Look) -> dict[str, float]:
    """What ``look`` shows, and how far it is from the untrained encoder's; {} for no numbers.

    - ``collapse/rankme``: `rankme` of the pooled features.
    - ``collapse/pooled_std``: deviation of the pooled features over images, mean over channels.
    - ``collapse/target_drift``: ||pooled - its start|| / ||its start||.
    - ``position/location_r2``: `location_r2` of the patches.
    """
    if not look.is_finite:
        return {}
    drift = (look.pooled - start.pooled).norm() / start.pooled.norm().clamp(min=1e-12)
    found = {"collapse/rankme": rankme(look.pooled), "collapse/target_drift": float(drift)}
    if len(look.pooled) > 1:  # one image alone has no spread, and none to judge by
        found["collapse/pooled_std"] = float(look.pooled.std(dim=0).mean())
        found["position/location_r2"] = location_r2(look.patches)
    return found


def moved(look: Look, before: Look) -> float:
    """``collapse/target_moved``: ||pooled - that of the look before|| / ||that||."""
    return float((look.pooled - before.pooled).norm() / before.pooled.norm().clamp(min=1e-12))


def token_std(look: Look) -> float:
    """``collapse/feature_std`` of the probe: deviation over patches, mean over channels."""
    return float(look.patches.flatten(0, 1).std(dim=0).mean())


def rankme(pooled: Float[Tensor, "n d"]) -> float:
    """Effective rank of features, from 1 to min(n, d): exp of the entropy of the shares of their
    singular values (Garrido et al., RankMe, ICML 2023, arXiv 2210.02885, equation 3)."""
    values = torch.linalg.svdvals(pooled.double())
    shares = values / values.sum().clamp(min=1e-300) + RANKME_EPS
    return float((-(shares * shares.log()).sum()).exp())


def location_r2(patches: Float[Tensor, "n patch d"]) -> float:
    """R2 of row and column of a patch, read linearly from its feature.

    As the location probe, small: fitted on every second image, judged on the others.
    """
    fit = Ridge(alpha=RIDGE).fit(*_rows(patches[::2]))
    features, places = _rows(patches[1::2])
    return float(r2_score(places, fit.predict(features)))


def _rows(
    patches: Float[Tensor, "n patch d"],
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    images, count, width = patches.shape
    side = math.isqrt(count)
    places = np.stack(np.divmod(np.arange(count), side), axis=1).astype(np.float64)
    return patches.reshape(-1, width).numpy(), np.tile(places, (images, 1))
