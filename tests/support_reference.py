"""A second I-JEPA and StoP, written plainly over a dict of weights, and recordings made with it.

No module, no fused attention, no kept-patch embedding, loops where loops say it best: what the
product's code is checked against at sizes that the official recording does not have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from stoplab_trainers.model.positions import sincos_2d

Weights = dict[str, Tensor]
CONFIG: dict[str, Any] = {
    "image_size": 12, "patch_size": 3, "width": 24, "depth": 2, "heads": 3,
    "predictor_width": 12, "predictor_depth": 3, "noise_std": 0.4, "lr": 0.002,
    "weight_decay": 0.1, "ema": 0.8,
}  # fmt: skip
COUNTS = {"images": 2, "blocks": 3, "context": 6, "target": 2}  # not in a recording's config


def vit(weights: Weights, prefix: str, norm: str, tokens: Tensor, heads: int) -> Tensor:
    """Pre-norm blocks and the final norm."""
    depth = len({n.split(".")[1] for n in weights if n.startswith(f"{prefix}.")})
    for i in range(depth):
        part = {
            n.removeprefix(f"{prefix}.{i}."): w
            for n, w in weights.items()
            if n.startswith(f"{prefix}.{i}.")
        }
        tokens = tokens + attention(part, layer_norm(part, "norm1", tokens), heads)
        hidden = F.gelu(linear(part, "mlp.fc1", layer_norm(part, "norm2", tokens)))
        tokens = tokens + linear(part, "mlp.fc2", hidden)
    return layer_norm(weights, norm, tokens)


def attention(weights: Weights, tokens: Tensor, heads: int) -> Tensor:
    """Softmax attention, head by head."""
    query, key, value = linear(weights, "attn.qkv", tokens).chunk(3, dim=-1)
    outputs = []
    for q, k, v in zip(*(x.chunk(heads, dim=-1) for x in (query, key, value)), strict=True):
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        outputs.append(scores.softmax(dim=-1) @ v)
    return linear(weights, "attn.proj", torch.cat(outputs, dim=-1))


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    """A layer with bias."""
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """The ViT's norm, eps 1e-6."""
    return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6)


def encode(weights: Weights, images: Tensor, heads: int, index: Tensor | None = None) -> Tensor:
    """Tokens of all patches, or of those in ``index`` [image, k]."""
    kernel = weights["patch_embed.proj.weight"]
    maps = F.conv2d(images, kernel, weights["patch_embed.proj.bias"], stride=kernel.shape[-1])
    tokens = maps.flatten(2).transpose(1, 2) + weights["pos_embed"]
    if index is not None:
        tokens = torch.stack([row[i] for row, i in zip(tokens, index, strict=True)])
    return vit(weights, "blocks", "norm", tokens, heads)


def predict(
    weights: Weights, context: Tensor, masks: tuple[Tensor, Tensor], noise: Tensor | None,
    heads: int,
) -> Tensor:  # fmt: skip
    """Rows (block, image): predictions of targets [block, image, n]; noise makes it StoP."""
    index, targets = masks
    psi = weights["predictor_pos_embed"][0]
    seen = linear(weights, "predictor_embed", context) + psi[index]
    rows = []
    for block, patches in enumerate(targets):
        if noise is None:
            masked = psi[patches] + weights["mask_token"]
        else:
            masked = psi[patches] + linear(weights, "predictor_embed", noise[block])
        tokens = vit(
            weights, "predictor_blocks", "predictor_norm", torch.cat([seen, masked], 1), heads
        )
        rows.append(linear(weights, "predictor_proj", tokens[:, index.shape[1] :]))
    return torch.cat(rows)


def record(path: Path, seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Writes a recording of these sizes; returns its arrays."""
    config = CONFIG | COUNTS | changes
    generator = torch.Generator().manual_seed(seed)
    arrays = inputs(config, generator)
    start = {"encoder/": encoder_weights(config, generator)}
    start["predictor/"] = predictor_weights(config, generator)
    for prefix, weights in start.items():
        arrays |= {prefix + name: value.clone() for name, value in weights.items()}
    for arm in ("ijepa", "stop"):
        arrays |= {f"{arm}/{k}": v for k, v in train(config, arrays, arm == "stop").items()}
    plain = {name: np.asarray(value) for name, value in arrays.items()}
    written = json.dumps({name: config[name] for name in CONFIG})
    np.savez(path, config=written, **plain)  # type: ignore[arg-type]
    return plain


def inputs(config: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """Images, masks and noise."""
    side, patches = config["image_size"], (config["image_size"] // config["patch_size"]) ** 2
    images, blocks, context, target = (config[name] for name in COUNTS)
    orders = torch.stack([torch.randperm(patches, generator=generator) for _ in range(images)])
    drawn = [orders[:, context + target * i :][:, :target] for i in range(blocks)]
    shape = (5, blocks, images, target, config["width"])
    return {
        "images": torch.randn(images, 3, side, side, generator=generator),
        "context_index": orders[:, :context].sort(dim=1).values,
        "target_index": torch.stack(drawn).sort(dim=2).values,
        "unit_noise": torch.randn(shape, generator=generator),
    }


def encoder_weights(config: dict[str, Any], generator: torch.Generator) -> Weights:
    """Random weights under the official names."""
    width, patch = config["width"], config["patch_size"]
    shapes = {
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    shapes |= block_shapes("blocks", config["depth"], width, "norm")
    table = sincos_2d(width, config["image_size"] // patch)[None]
    return {"pos_embed": table} | drawn(shapes, generator)


def predictor_weights(config: dict[str, Any], generator: torch.Generator) -> Weights:
    """Random weights under the official names."""
    width, outer = config["predictor_width"], config["width"]
    shapes = {"mask_token": (1, 1, width), "predictor_embed.weight": (width, outer)}
    shapes |= {"predictor_embed.bias": (width,), "predictor_proj.weight": (outer, width)}
    shapes |= {"predictor_proj.bias": (outer,)}
    shapes |= block_shapes("predictor_blocks", config["predictor_depth"], width, "predictor_norm")
    table = sincos_2d(width, config["image_size"] // config["patch_size"])[None]
    return {"predictor_pos_embed": table} | drawn(shapes, generator)


def block_shapes(prefix: str, depth: int, width: int, norm: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the transformer part."""
    shapes: dict[str, tuple[int, ...]] = {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    sides = {"attn.qkv": 3, "attn.proj": 1, "mlp.fc1": 4}
    for i in range(depth):
        for name in ("norm1", "norm2"):
            shapes |= {f"{prefix}.{i}.{name}.{part}": (width,) for part in ("weight", "bias")}
        for name, times in sides.items():
            shapes[f"{prefix}.{i}.{name}.weight"] = (times * width, width)
            shapes[f"{prefix}.{i}.{name}.bias"] = (times * width,)
        shapes[f"{prefix}.{i}.mlp.fc2.weight"] = (width, 4 * width)
        shapes[f"{prefix}.{i}.mlp.fc2.bias"] = (width,)
    return shapes


def drawn(shapes: dict[str, tuple[int, ...]], generator: torch.Generator) -> Weights:
    """Normal weights, norms around 1."""
    weights = {n: 0.1 * torch.randn(s, generator=generator) for n, s in shapes.items()}
    return {n: w + (n.endswith("weight") and "norm" in n) for n, w in weights.items()}


def train(config: dict[str, Any], arrays: dict[str, Tensor], stop: bool) -> dict[str, Any]:
    """Five steps of one arm; what a recording holds of them."""
    encoder, predictor = (
        {n.removeprefix(p): v.clone() for n, v in arrays.items() if n.startswith(p)}
        for p in ("encoder/", "predictor/")
    )
    target = {name: value.clone() for name, value in encoder.items()}
    trained = [
        weight.requires_grad_()
        for weights in (encoder, predictor)
        for name, weight in weights.items()
        if not name.endswith("pos_embed")
    ]
    decayed = [weight for weight in trained if weight.ndim > 1]
    spared = [weight for weight in trained if weight.ndim == 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config["weight_decay"]},
            {"params": spared, "weight_decay": 0.0},
        ],
        lr=config["lr"],
    )
    found: dict[str, Any] = {}
    losses = []
    for step in range(5):
        predictions, loss = forward(config, arrays, (encoder, predictor, target), step, stop)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
        if step == 0:
            found = {"predictions": predictions.detach(), "loss": loss.detach()}
            for weights, name in (
                (predictor, "predictor_embed.weight"),
                (encoder, "patch_embed.proj.weight"),
            ):
                gradient = weights[name].grad
                assert gradient is not None
                found[f"grad/{name}"] = gradient.clone()
        optimizer.step()
        with torch.no_grad():
            for name, weight in target.items():
                weight.copy_(config["ema"] * weight + (1 - config["ema"]) * encoder[name])
    found["five_losses"] = np.array(losses)
    name = "blocks.1.mlp.fc1.weight"
    found[f"after_five/encoder.{name}"] = encoder[name].detach()
    found[f"after_five/target.{name}"] = target[name]
    name = "predictor_blocks.2.attn.proj.weight"
    found[f"after_five/{name}"] = predictor[name].detach()
    return found


def forward(
    config: dict[str, Any],
    arrays: dict[str, Tensor],
    models: tuple[Weights, Weights, Weights],
    step: int,
    stop: bool,
) -> tuple[Tensor, Tensor]:
    """Predictions (block, image) and loss of one step."""
    encoder, predictor, target = models
    heads, images = config["heads"], arrays["images"]
    targets = arrays["target_index"]
    noise = config["noise_std"] * arrays["unit_noise"][step] if stop else None
    context = encode(encoder, images, heads, arrays["context_index"])
    masks = (arrays["context_index"], targets)
    predictions = predict(predictor, context, masks, noise, heads)
    with torch.no_grad():
        whole = encode(target, images, heads)
        whole = F.layer_norm(whole, whole.shape[-1:])
        rows = [row[i] for block in targets for row, i in zip(whole, block, strict=True)]
    return predictions, F.smooth_l1_loss(predictions, torch.stack(rows))
