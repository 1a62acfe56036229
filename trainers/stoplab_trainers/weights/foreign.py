"""A ViT encoder as timm, DINO and MAE keep it, brought into the form that encoders have here.

Theirs have a class token in front, heads behind, and mostly a learned table of positions; timm's
may keep the final norm behind the mean (`fc_norm`). Encoders here are blocks between a patch
embedding and a norm, with a fixed sin-cos table. What has no place here is left out, and told. What
else a file holds (scales of layers, register tokens, norms of queries) changes what its blocks
compute: it stays, and `fitting.fill` refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

from torch import Tensor

from stoplab_trainers.weights.fitting import is_table

DDP, BACKBONE = "module.", "backbone."
WRAPPERS = ("target_encoder", "teacher", "encoder", "state_dict", "model")
"""Under which names files hold an encoder's state dict; an average of weights comes first."""
CLASS_TOKEN, POSITIONS = "cls_token", "pos_embed"
BEHIND = ("head.", "pre_logits.", "mask_token", "decoder_")
"""Begin the names of what only a classifier, or their training, has a use for."""
POOLED, NORM = "fc_norm.", "norm."


@dataclass(frozen=True)
class Adapted:
    """An encoder's weights in timm's names, none of them in front of the patches or behind.

    Attributes:
        weights: by name; no `pos_embed` where theirs is another table than here.
        left_out: what the file held beside them, one word for a module.
        other_positions: whether its positions are no sin-cos table.
    """

    weights: dict[str, Any]
    left_out: list[str]
    other_positions: bool


def without(prefix: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict without a prefix that stands before all of its names."""
    if all(str(name).startswith(prefix) for name in given):
        return {name.removeprefix(prefix): value for name, value in given.items()}
    return dict(given)


def encoder_in(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The state dict of an encoder that a file holds, alone or among others, or None."""
    found = [content, *(content.get(name) for name in WRAPPERS)]
    return next((one for one in found if isinstance(one, Mapping) and has_tensors(one)), None)


def has_tensors(given: Mapping[Any, Any]) -> bool:
    """Whether it holds weights by name."""
    return any(isinstance(value, Tensor) for value in given.values())


def adapted(given: Mapping[str, Any]) -> Adapted:
    """An encoder's state dict as encoders here have it; `fc_norm` is taken for the final norm."""
    named = without(DDP, given)
    kept = without(BACKBONE, {n: v for n, v in named.items() if not n.startswith(BEHIND)})
    left_out = [name for name in named if name.startswith(BEHIND)]
    table = kept.get(POSITIONS)
    if kept.pop(CLASS_TOKEN, None) is not None:
        left_out.append(CLASS_TOKEN)
        if isinstance(table, Tensor) and table.ndim == 3 and _is_square(table.shape[1] - 1):
            table = kept[POSITIONS] = table[:, 1:]
    other_positions = isinstance(table, Tensor) and not is_table(table)
    if other_positions:
        del kept[POSITIONS]
        left_out.append(POSITIONS)
    if not any(name.startswith(NORM) for name in kept):
        kept = {_unpooled(name): value for name, value in kept.items()}
    pooled = [name for name in kept if name.startswith(POOLED)]  # beside a final norm
    kept = {name: value for name, value in kept.items() if name not in pooled}
    words = (name.partition(".")[0] for name in (*left_out, *pooled))
    return Adapted(kept, sorted(set(words)), other_positions)


def _unpooled(name: str) -> str:
    return NORM + name.removeprefix(POOLED) if name.startswith(POOLED) else name


def _is_square(count: int) -> bool:
    return isqrt(count) ** 2 == count
