"""Writes the sizes of timm's plain ViTs, for parts that do without torch: `make vits`.

python -m stoplab_trainers.vits platform/stoplab_platform/vits.json
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block, VisionTransformer

from stoplab_platform.specs.model import VitSizes


def plain_vits() -> list[str]:
    """Names of timm's ViTs without the hybrids, which put a convolutional network first."""
    return sorted(timm.list_models("vit_*", module="vision_transformer"))


def sizes_of(name: str) -> VitSizes | None:
    """What timm builds under a name; None where its blocks are not plain ones."""
    with torch.device("meta"):
        vit: Any = timm.create_model(name, num_classes=0)
    if not _is_plain(vit):
        return None
    block = vit.blocks[0]
    return VitSizes(
        width=vit.embed_dim,
        depth=len(vit.blocks),
        heads=block.attn.num_heads,
        patch_size=vit.patch_embed.patch_size[0],
        # Rounded up: timm cuts width * mlp_ratio to a whole number.
        mlp_ratio=math.ceil(block.mlp.fc1.out_features / vit.embed_dim * 1e4) / 1e4,
    )


def main(path: Path) -> None:
    """Replace the table, a line a model."""
    found = {name: sizes_of(name) for name in plain_vits()}
    lines = [
        f'"{name}": {json.dumps(asdict(sizes), sort_keys=True)}'
        for name, sizes in found.items()
        if sizes is not None
    ]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _is_plain(vit: Any) -> bool:
    kinds = type(vit), type(vit.blocks[0])
    return kinds == (VisionTransformer, Block) and type(vit.blocks[0].mlp) is Mlp


if __name__ == "__main__":
    main(Path(sys.argv[1]))
