"""A training step of the published recipe, written plainly: what `step` compares ours with.

Its ingredients, which are those of the published code and no slower ones:

- patches by a strided convolution of the whole image, positions added, then the context gathered;
- attention as two matrix products around a softmax;
- the context repeated for the four target blocks, all rows through all blocks of the predictor,
  the norm over all of them, then the target rows cut out;
- the target encoder on the whole image without gradient, all its tokens normalised, then gathered;
- smooth L1; the loss, and the gradient's norm of every matrix of the encoder, read every step;
- AdamW as torch makes it by default, in two groups; the moving average weight by weight.

Masks and pixels are given, as a loader's workers would: drawing them costs it nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Softmax attention of all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[row, n, width] to the same."""
        row, count, width = tokens.shape
        split = self.qkv(tokens).reshape(row, count, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        scores = (query @ key.transpose(-2, -1)) * (width // self.heads) ** -0.5
        found = scores.softmax(dim=-1) @ value
        out: Tensor = self.proj(found.transpose(1, 2).reshape(row, count, width))
        return out


class Mlp(nn.Module):
    """Two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[row, n, width] to the same."""
        out: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return out


class Block(nn.Module):
    """Pre-norm block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn, self.mlp = Attention(width, heads), Mlp(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """[row, n, width] to the same."""
        tokens = tokens + self.attn(self.norm1(tokens))
        out: Tensor = tokens + self.mlp(self.norm2(tokens))
        return out


class Vit(nn.Module):
    """A ViT without class token, under timm's names."""

    def __init__(self, width: int, depth: int, heads: int, patch: int, grid: int) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid * grid, width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """[image, patch, width], of the patches of ``index`` [image, k] alone if given."""
        maps: Tensor = self.patch_embed.proj(images)  # type: ignore[operator]
        tokens = maps.flatten(2).transpose(1, 2) + self.pos_embed
        if index is not None:
            tokens = gathered(tokens, index)
        for block in self.blocks:
            tokens = block(tokens)
        out: Tensor = self.norm(tokens)
        return out


class Predictor(nn.Module):
    """A narrow ViT over context and masked tokens."""

    def __init__(self, outer: int, width: int, depth: int, heads: int, grid: int) -> None:
        super().__init__()
        self.embed, self.proj = nn.Linear(outer, width), nn.Linear(width, outer)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, grid * grid, width), requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(
        self, features: Tensor, context: Tensor, targets: Tensor, noise: Tensor | None
    ) -> Tensor:
        """[block * image, n, outer]; ``noise`` [image, block, n, outer] makes it StoP."""
        table = self.pos_embed.expand(len(features), -1, -1)
        seen = self.embed(features) + gathered(table, context)
        blocks = targets.unbind(1)
        masked = torch.cat([gathered(table, block) for block in blocks]) + self.mask_token
        if noise is not None:
            masked = masked + F.linear(noise.transpose(0, 1).flatten(0, 1), self.embed.weight)
        tokens = torch.cat([seen.repeat(len(blocks), 1, 1), masked], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        out: Tensor = self.proj(self.norm(tokens)[:, context.shape[1] :])
        return out


class PlainStep:
    """Weights, optimiser and step. ``state`` is that of our student, under the same names."""

    def __init__(self, spec: Any, state: dict[str, Tensor]) -> None:
        sizes, narrow, grid = spec.model.sizes(), spec.model.predictor, spec.grid
        shape = (sizes.width, sizes.depth, sizes.heads, sizes.patch_size, grid)
        self.encoder, self.target = Vit(*shape), Vit(*shape).requires_grad_(False)
        self.predictor = Predictor(
            sizes.width, narrow.width, narrow.depth, spec.model.predictor_heads, grid
        )
        own = {"encoder.vit.": self.encoder, "predictor.": self.predictor}
        for prefix, module in {**own, "encoder.vit. ": self.target}.items():
            start = prefix.strip()
            part = {n.removeprefix(start): v for n, v in state.items() if n.startswith(start)}
            module.load_state_dict(part)
        self.noise_std = spec.positions.noise_std
        trained = [*self.encoder.parameters(), *self.predictor.parameters()]
        decayed = [p for p in trained if p.requires_grad and p.ndim > 1]
        plain = [p for p in trained if p.requires_grad and p.ndim == 1]
        groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups)

    def __call__(
        self, images: Tensor, masks: Any, noise: Tensor | None, rates: tuple[float, float, float]
    ) -> float:
        """One step on normalised images at a rate, decay and momentum; the loss."""
        rate, decay, momentum = rates
        for group, value in zip(self.optimizer.param_groups, (decay, 0.0), strict=True):
            group["lr"], group["weight_decay"] = rate, value
        context, targets = masks
        with torch.no_grad():
            whole = self.target(images)
            whole = F.layer_norm(whole, whole.shape[-1:])
            wanted = torch.cat([gathered(whole, block) for block in targets.unbind(1)])
        if noise is not None:
            noise = self.noise_std * noise
        features = self.encoder(images, context)
        loss = F.smooth_l1_loss(self.predictor(features, context, targets, noise), wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        for weight in self.encoder.parameters():
            if weight.grad is not None and weight.ndim > 1:
                float(weight.grad.norm())
        self.optimizer.zero_grad()
        with torch.no_grad():
            for own, new in zip(self.target.parameters(), self.encoder.parameters(), strict=True):
                own.mul_(momentum).add_((1.0 - momentum) * new.detach())
        return float(loss.detach())


def gathered(tokens: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` [image, k] of [image, n, width]."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[-1]))
