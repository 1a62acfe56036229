"""One mapping between our parameters' names and those of the I-JEPA and StoP repositories.

Their encoder has timm's names; ours keeps it below `vit`. Their predictor's names begin with
`predictor_`, but for `mask_token` (ijepa:src/models/vision_transformer.py@52c1ae9,
StoP:src/deit.py@72206b3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

ENCODER, PREDICTOR = "vit.", "predictor_"
MASK_TOKEN = "mask_token"

Weights = dict[str, Tensor]


def encoder_theirs(own: str) -> str:
    """The name in timm and with them of a weight of an `Encoder`."""
    return own.removeprefix(ENCODER)


def predictor_theirs(own: str) -> str:
    """Their name of a weight of a `Predictor`."""
    return own if own == MASK_TOKEN else PREDICTOR + own


def predictor_ours(theirs: str) -> str:
    """The way back."""
    return theirs.removeprefix(PREDICTOR)


def renamed(weights: Mapping[str, Tensor], name: Callable[[str], str]) -> Weights:
    """Weights under other names, detached, on the CPU and contiguous; those there are shared."""
    return {name(own): value.detach().cpu().contiguous() for own, value in weights.items()}
