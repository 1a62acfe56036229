"""The model card of an exported encoder: a README.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import yaml

from stoplab_platform.specs import RunSpec
from stoplab_trainers.data.loader import MEAN, STD
from stoplab_trainers.weights.trained import Trained

PARTS = ("test", "val", "init", "pixels")  # of the scores, in this order
MEANS = {
    "test": "test split",
    "val": "validation split",
    "init": "the same encoder untrained, test split",
    "pixels": "raw pixels, test split",
}


def model_card(trained: Trained, loading: str, file: str) -> str:
    """Markdown: what it is, how to load it, its scores, how it was trained, whose it is."""
    spec, sizes = trained.spec, trained.spec.model.sizes()
    size = spec.data.image_size
    return "\n".join(
        [
            "---",
            "library_name: timm",
            "tags: [image-feature-extraction, self-supervised, i-jepa, stop]",
            "---",
            "",
            f"# {spec.name}",
            "",
            f"The EMA (target) encoder of a {_method(spec)} run, at step "
            f"{trained.provenance['step']}: a plain ViT without class token, width {sizes.width}, "
            f"depth {sizes.depth}, {sizes.heads} heads, patches of {sizes.patch_size} pixels, "
            f"images of {size}x{size}, fixed sin-cos positions.",
            "",
            "## Loading",
            "",
            "```python",
            "import timm",
            "",
            f"model = {loading}",
            f"features = model(images)  # [b, {sizes.width}]: the mean patch token",
            "```",
            "",
            f"`images` are float32 [b, 3, {size}, {size}], normalised with ImageNet's mean {MEAN} "
            f"and standard deviation {STD}.",
            "",
            "## Scores",
            "",
            *_scores(trained.scores),
            "",
            "## Training",
            "",
            "The whole spec, but for defaults:",
            "",
            "```yaml",
            yaml.safe_dump(spec.plain(defaults=False), sort_keys=False, allow_unicode=True).strip(),
            "```",
            "",
            "## Provenance",
            "",
            "| what | value |",
            "|---|---|",
            *(f"| {name} | `{value}` |" for name, value in trained.provenance.items()),
            "",
            f"The same stands in the metadata of `{file}`.",
            "",
            "## Licence",
            "",
            "Weights follow the data that they were trained on: see the licence of "
            f"`{_data(spec)}` before you pass them on."
            + (
                " They began from other weights (`init_from`), whose licence holds as well."
                if spec.model.init_from
                else ""
            ),
            "",
        ]
    )


def _method(spec: RunSpec) -> str:
    if spec.positions.kind == "stochastic":
        return f"StoP (stochastic positions, noise_std {spec.positions.noise_std:g})"
    return "I-JEPA (deterministic positions)"


def _scores(scores: Mapping[str, float]) -> Iterator[str]:
    """A table of the evaluations, fractions in [0, 1]; numbers of the training are none."""
    rows = [
        f"| {name.partition('/')[2]} | {MEANS[part]} | {value:.4f} |"
        for part in PARTS
        for name, value in sorted(scores.items())
        if name.startswith(f"{part}/")
    ]
    if not rows:
        yield "None: the run was not evaluated at this step."
        return
    yield from ("| metric | on | value |", "|---|---|---|", *rows)


def _data(spec: RunSpec) -> str:
    train = spec.data.train
    return train if isinstance(train, str) else ", ".join(train)
