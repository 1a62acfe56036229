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

# The backward pass of cuDNN's gives NaN on Hopper in bf16 where the forward pass is sound: for 64
# tokens (or 192, ...) and a query whose scores are all far below 0 (NVIDIA/cudnn-frontend#628), and
# where nobody has found what it needs (kyutai-labs/pocket-tts#264, huggingface/trl#7181).
torch.backends.cuda.enable_cudnn_sdp(False)
# What was compiled with it, and lies in a cache on disk, is not this.
torch.compiler.config.cache_key_tag += "-without-cudnn-attention"

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
            return checkpoint(
                self._computed, tokens, asked, use_reentrant=False, preserve_rng_state=False
            )
        return self._computed(tokens, asked)

    def _computed(self, tokens: Tensor, asked: Asked | None) -> Tensor:
        block: Any = self
        attn, mlp, width = block.attn, block.mlp, tokens.shape[-1]
        weight, bias, heads = attn.qkv.weight, attn.qkv.bias, attn.num_heads
        normed = block.norm1(tokens)
        if asked is None:
            query, key, value = _heads(linear(normed, weight, bias), 3, heads)
        else:
            asking = linear(picked(normed, asked), weight[:width], bias[:width])
            (query,) = _heads(asking, 1, heads)
            key, value = _heads(linear(normed, weight[width:], bias[width:]), 2, heads)
            tokens = picked(tokens, asked)
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


def _heads(
    tokens: Float[Tensor, "row n d"], parts: int, heads: int
) -> tuple[Float[Tensor, "row head n c"], ...]:
    """Queries, keys or values that lie side by side, apart and in heads."""
    row, count, _ = tokens.shape
    apart = tokens.reshape(row, count, parts, heads, -1).unbind(2)
    return tuple(part.transpose(1, 2) for part in apart)
