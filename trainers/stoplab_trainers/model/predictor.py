"""The predictor: a narrow ViT that sees the context and fills in one target block at a time."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stoplab_platform.specs.positions import PositionsSpec
from stoplab_trainers.masking import TensorMasks
from stoplab_trainers.model.block import Block, through
from stoplab_trainers.model.encoder import LayerNorm
from stoplab_trainers.model.linear import linear
from stoplab_trainers.model.positions import fixed_table, learned_table, position_noise
from stoplab_trainers.randomness import Noise


class Predictor(nn.Module):
    """Tokens of the predictor, with A = ``embed.weight``, b its bias, psi the position table:

        context  c_i = A s_i + b + psi_i                (+ A n_i with noise on the context)
        masked   m_j = psi_j + mask token + A n_j       parametrization stoplab
                 m_j = psi_j + b + A n_j                official, stochastic
                 m_j = psi_j                            official, deterministic

    psi is fixed, or (deterministic positions alone) a learned table beside it. Without noise,
    `stoplab` is I-JEPA to the bit. `official` has no mask token: the authors'
    code holds one and never reads it. No trained weight goes without gradient in any mode.
    """

    mask_token: nn.Parameter | None
    learned_table: nn.Parameter | None

    def __init__(
        self,
        positions: PositionsSpec,
        *,
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        grid: int,
        mlp_ratio: float = 4.0,
        output_width: int | None = None,
    ) -> None:
        super().__init__()
        self.bias_as_token = positions.kind == "stochastic"
        self.embed = nn.Linear(encoder_width, width)
        self.pos_embed = fixed_table(width, grid)
        if positions.parametrization == "stoplab":
            self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        else:
            self.mask_token = None
        # Beside the fixed table, so that arms of either table share all other weights.
        self.learned_table = learned_table(width, grid) if positions.table == "learned" else None
        self.noise = position_noise(positions, encoder_width, width)
        norm_layer: Any = LayerNorm
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio=mlp_ratio, qkv_bias=True, norm_layer=norm_layer)
            for _ in range(depth)
        )
        self.norm = LayerNorm(width)
        self.proj = nn.Linear(width, output_width or encoder_width)

    @property
    def table(self) -> Float[Tensor, "patch width"]:
        """The positions psi of all patches."""
        return self.pos_embed[0] if self.learned_table is None else self.learned_table[0]

    def forward(
        self, features: Float[Tensor, "b k d"], masks: TensorMasks, noise: Noise
    ) -> Float[Tensor, "b block n out"]:
        """What is predicted of the target patches; blocks never see each other.

        ``output_width`` channels of each: the encoder's unless given.
        """
        context = self.context_tokens(features, masks, noise)
        masked = self.masked_tokens(masks, noise)
        batch, num_blocks, num_target, _ = masked.shape
        context = context[:, None].expand(-1, num_blocks, -1, -1)
        tokens = torch.cat([context, masked], dim=2).flatten(0, 1)
        blocks = cast("list[Block]", list(self.blocks))
        tokens = self.norm(through(blocks, tokens, num_target))
        predicted = linear(tokens, self.proj.weight, self.proj.bias)
        return predicted.reshape(batch, num_blocks, num_target, -1)

    def context_tokens(
        self, features: Float[Tensor, "b k d"], masks: TensorMasks, noise: Noise
    ) -> Float[Tensor, "b k width"]:
        """The projected context at its positions."""
        tokens = linear(features, self.embed.weight, self.embed.bias) + self.table[masks.context]
        if self.noise.on_context:
            assert noise.context is not None, "these positions need noise on the context"
            tokens = tokens + self.noise(noise.context, self.embed.weight)
        return tokens

    def masked_tokens(self, masks: TensorMasks, noise: Noise) -> Float[Tensor, "b block n width"]:
        """The queries: noised positions of the target patches, and what says "masked"."""
        tokens = self.table[masks.targets]
        if self.mask_token is not None:
            tokens = tokens + self.mask_token
        elif self.bias_as_token:
            tokens = tokens + self.embed.bias
        if self.noise.on_masked:
            assert noise.masked is not None, "these positions need noise on the masked tokens"
            tokens = tokens + self.noise(noise.masked, self.embed.weight)
        return tokens
