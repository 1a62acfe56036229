"""The encoder: timm's plain ViT without class token, on all patches or on the kept ones only."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from stoplab_platform.specs.model import VitSizes
from stoplab_trainers.model.block import Block, through
from stoplab_trainers.model.linear import linear
from stoplab_trainers.model.positions import fixed_table

LayerNorm = partial(nn.LayerNorm, eps=1e-6)


class Encoder(nn.Module):
    """A ViT whose parameters keep timm's names, below ``vit``.

    Attributes:
        width: channels of a token.
        grid: patches along one side of the image.
    """

    def __init__(self, sizes: VitSizes, image_size: int) -> None:
        super().__init__()
        self.width, self.patch_size = sizes.width, sizes.patch_size
        self.grid = image_size // sizes.patch_size
        self.vit: Any = VisionTransformer(
            img_size=image_size,
            patch_size=sizes.patch_size,
            embed_dim=sizes.width,
            depth=sizes.depth,
            num_heads=sizes.heads,
            mlp_ratio=sizes.mlp_ratio,
            qkv_bias=True,
            class_token=False,
            global_pool="",
            num_classes=0,
            norm_layer=LayerNorm,
            block_fn=Block,
            weight_init="skip",
        )
        self.vit.pos_embed = fixed_table(sizes.width, self.grid)

    def forward(
        self,
        images: Float[Tensor, "b 3 h w"],
        index: Int64[Tensor, "b k"] | None = None,
        asked: Int64[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Tokens after the final norm; with ``index``, of those patches, which alone are seen.

        With ``asked``, of those rows, though all are seen: the last block computes no other.
        """
        tokens = through(self.vit.blocks, self.embed(images, index), asked)
        return cast(Tensor, self.vit.norm(tokens))

    def embed(
        self, images: Float[Tensor, "b 3 h w"], index: Int64[Tensor, "b k"] | None = None
    ) -> Float[Tensor, "b k d"]:
        """Patch embeddings plus positions, of the kept patches only.

        The convolution has its stride for kernel, so it is a linear map of each patch.
        """
        batch, grid = len(images), self.grid
        sides = (batch, 3, grid, self.patch_size, grid, self.patch_size)
        patches = images.reshape(sides).permute(0, 2, 4, 1, 3, 5)
        positions: Tensor = self.vit.pos_embed[0]
        if index is None:
            pixels = patches.reshape(batch, grid * grid, -1)
        else:
            row = torch.arange(batch, device=images.device)[:, None]
            pixels = patches[row, index // grid, index % grid].flatten(2)
            positions = positions[index]
        proj: nn.Conv2d = self.vit.patch_embed.proj
        return linear(pixels, proj.weight.flatten(1), proj.bias) + positions

    def features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """The mean token of the whole image: what the probes see."""
        return cast(Tensor, self(images).mean(dim=1))

    def blocks_features(
        self, images: Float[Tensor, "b 3 h w"], last: int = 4
    ) -> Float[Tensor, "b d_last"]:
        """Mean tokens of the ``last`` blocks, each after the same final norm, side by side."""
        pooled: list[Tensor] = []
        tokens = self.embed(images)
        for block in self.vit.blocks:
            tokens = block(tokens)
            pooled = [*pooled, self.vit.norm(tokens).mean(dim=1)][-last:]
        return torch.cat(pooled, dim=1)
