"""A transformer block that computes no row which nobody reads, and may keep nothing for later."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import timm.models.vision_transformer
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stoplab_trainers.model.linear import linear

Asked = int | Int64[Tensor, "row m"]
"""Rows that are read after a block: so many last ones, or those of an index."""


class Block(timm.models.vision_transformer.Block):
    """timm's pre-norm block under its names, without what a plain ViT has not (dropout, scales).

    Attributes:
        recomputes: its activations are computed again on the way back instead of kept.
    """

    recomputes = False

    def forward(  # type: ignore[override]
        self, tokens: Float[Tensor, "row n d"], asked: Asked | None = None
    ) -> Float[Tensor, "row m d"]:
        """All rows; with ``asked`` those alone, at their cost.

        They attend to all, so keys and values are computed for all, the rest is not.
        """
        if self.recomputes and torch.is_grad_enabled():
            found = checkpoint(
                self._computed, tokens, asked, use_reentrant=False, preserve_rng_state=False
            )
            return cast(Tensor, found)
        return self._computed(tokens, asked)

    def _computed(self, tokens: Tensor, asked: Asked | None) -> Tensor:
        block: Any = self
        attn, mlp, width = block.attn, block.mlp, tokens.shape[-1]
        weight, bias, split = attn.qkv.weight, attn.qkv.bias, (attn.num_heads, attn.head_dim)
        normed = block.norm1(tokens)
        if asked is None:
            query, key, value = linear(normed, weight, bias).unflatten(-1, (3, *split)).unbind(2)
        else:
            query = linear(picked(normed, asked), weight[:width], bias[:width]).unflatten(-1, split)
            both = linear(normed, weight[width:], bias[width:]).unflatten(-1, (2, *split))
            key, value = both.unbind(2)
            tokens = picked(tokens, asked)
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        found = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + linear(found, attn.proj.weight, attn.proj.bias)
        hidden = mlp.act(linear(block.norm2(tokens), mlp.fc1.weight, mlp.fc1.bias))
        return tokens + linear(hidden, mlp.fc2.weight, mlp.fc2.bias)


def through(
    blocks: Iterable[Block], tokens: Float[Tensor, "row n d"], asked: Asked | None = None
) -> Float[Tensor, "row m d"]:
    """All blocks one after another; of the last, the rows ``asked`` alone if given."""
    *body, last = blocks
    for block in body:
        tokens = block(tokens)
    return cast(Tensor, last(tokens, asked))


def picked(tokens: Float[Tensor, "row n d"], asked: Asked) -> Float[Tensor, "row m d"]:
    """Some rows of each sequence."""
    if isinstance(asked, int):
        return tokens[:, -asked:]
    row, count, width = tokens.shape
    starts = torch.arange(0, row * count, count, device=tokens.device)[:, None]
    flat = tokens.reshape(-1, width).index_select(0, (starts + asked).flatten())
    return flat.reshape(row, -1, width)
