"""The model card of an exported encoder: a README.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import yaml

from stoplab_platform.specs import RunSpec
from stoplab_platform.specs.baselines import baseline
from stoplab_platform.specs.objective import PluginObjective
from stoplab_platform.specs.positions import (
    DeterministicPositions,
    PluginPositions,
    StochasticPositions,
)
from stoplab_trainers.data.loader import MEAN, STD
from stoplab_trainers.weights.trained import Trained

OBJECTIVES = {"ijepa": "I-JEPA", "mae": "MAE"}
BASELINES = {
    "ijepa": "I-JEPA (deterministic positions)",
    "stop_sigma0": "StoP without noise (noise_std 0, in the official code's parametrization)",
    "official_off": "StoP's official code with its flag off (no mask token, so not I-JEPA)",
}
PARTS = ("test", "val", "init", "pixels")  # of the scores, in this order
MEANS = {
    "test": "test split",
    "val": "validation split",
    "init": "the same encoder untrained, test split",
    "pixels": "raw pixels, test split",
}


CARD = """\
---
library_name: timm
tags: [{tags}]
---

# {name}

The {encoder} of a run of {method}, at step {step}: a plain ViT without class token,
width {width}, depth {depth}, {heads} heads, patches of {patch_size} pixels, images of
{size}x{size}, fixed sin-cos positions.

## Loading

```python
import timm

model = {loading}
features = model(images)  # [b, {width}]: the mean patch token
```

`images` are float32 [b, 3, {size}, {size}], normalised with ImageNet's mean {mean} and standard
deviation {std}.

## Scores

{scores}

## Training

The whole spec, but for defaults:

```yaml
{spec}
```

## Provenance

| what | value |
|---|---|
{provenance}

The same stands in the metadata of `{file}`.

## Licence

Weights follow the data that they were trained on: see the licence of `{data}` before you pass them
on.{others}
"""
OTHERS = " They began from other weights (`init_from`), whose licence holds as well."


def model_card(trained: Trained, loading: str, file: str) -> str:
    """Markdown: what it is, how to load it, its scores, how it was trained, whose it is."""
    spec, sizes = trained.spec, trained.spec.model.sizes()
    return CARD.format(
        name=spec.name,
        tags=", ".join(("image-feature-extraction", "self-supervised", *_tags(spec))),
        encoder="EMA (target) encoder" if spec.objective.averages else "encoder",
        method=_method(spec),
        step=trained.provenance["step"],
        width=sizes.width,
        depth=sizes.depth,
        heads=sizes.heads,
        patch_size=sizes.patch_size,
        size=spec.data.image_size,
        loading=loading,
        mean=MEAN,
        std=STD,
        scores="\n".join(_scores(trained.scores)),
        spec=yaml.safe_dump(
            spec.plain(defaults=False), sort_keys=False, allow_unicode=True
        ).strip(),
        provenance="\n".join(f"| {name} | `{v}` |" for name, v in trained.provenance.items()),
        file=file,
        data=_data(spec),
        others=OTHERS if spec.model.init_from else "",
    )


def _method(spec: RunSpec) -> str:
    """Objective and positions; a baseline under its own name."""
    named = baseline(spec)
    if named in BASELINES:
        return BASELINES[named]
    kind = spec.objective.kind
    plugged = isinstance(spec.objective, PluginObjective)
    objective = f"the objective `{kind}` (a plug-in's)" if plugged else OBJECTIVES[kind]
    return f"{objective} with {_positions(spec.positions)}"


def _positions(positions: DeterministicPositions | StochasticPositions | PluginPositions) -> str:
    scale = f"noise_std {positions.noise_std:g}"
    if isinstance(positions, PluginPositions):
        return f"the positions `{positions.kind}` (a plug-in's, {scale})"
    if isinstance(positions, StochasticPositions) and positions.noise_std > 0:
        how = f"covariance {positions.covariance}, noise on {positions.noise_on}"
        text = f"stochastic positions (StoP: {scale}, {how}"
        return f"{text}{', as in the official code' * (positions.parametrization == 'official')})"
    return f"deterministic positions ({positions.table} table)"


def _tags(spec: RunSpec) -> Iterator[str]:
    if not isinstance(spec.objective, PluginObjective):
        yield OBJECTIVES[spec.objective.kind].lower()
    if isinstance(spec.positions, StochasticPositions) and spec.positions.noise_std > 0:
        yield "stop"


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
