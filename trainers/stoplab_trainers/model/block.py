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

Asked = int | Int64[Tensor, "row m"]
"""Rows that are read after a block: so many last ones, or those of an index."""


class Block(timm.models.vision_transformer.Block):
    """timm's pre-norm block.

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
        if asked is None:
            return cast(Tensor, super().forward(tokens))
        block: Any = self
        normed, asking = block.norm1(tokens), picked(tokens, asked)
        qkv, width = block.attn.qkv, tokens.shape[-1]
        query = F.linear(picked(normed, asked), qkv.weight[:width], qkv.bias[:width])
        key, value = F.linear(normed, qkv.weight[width:], qkv.bias[width:]).chunk(2, dim=-1)
        heads = block.attn.num_heads
        query, key, value = (_split(part, heads) for part in (query, key, value))
        found = F.scaled_dot_product_attention(query, key, value)
        asking = asking + block.attn.proj(found.transpose(1, 2).flatten(2))
        return cast(Tensor, asking + block.mlp(block.norm2(asking)))


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


def _split(tokens: Float[Tensor, "row n d"], heads: int) -> Float[Tensor, "row head n c"]:
    row, length, width = tokens.shape
    return tokens.reshape(row, length, heads, width // heads).transpose(1, 2)
