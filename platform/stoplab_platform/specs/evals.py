"""Evaluation protocols: what a frozen encoder is judged by, one class a protocol.

docs/evaluation.md says what each measures, and where it departs from its source.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from stoplab_platform.errors import Problem
from stoplab_platform.specs.base import Path, Spec

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Epochs = Annotated[int, Field(ge=1, le=10_000)]
PARTS = r"draw\d+|up|down|left|right"
"""What predictions of a metric's parts are told apart by (`low_shot_top1.draw0`)."""


class EvalSpec(Spec):
    """What all protocols share."""

    version: ClassVar[int] = 1
    """Raised when the protocol gives other numbers; scores of two versions share no table."""

    every_epochs: int | None = Field(default=None, ge=1, le=1_000_000)
    """Also run on the validation split each so many epochs; null: only at the end."""
    label: str | None = Field(default=None, pattern=r"^[A-Za-z][A-Za-z0-9_]{0,39}$")
    """Ends its metrics' names, so that a protocol may be asked for several times:
    `low_shot_top1.ten_percent`. Default null."""

    @field_validator("label")
    @classmethod
    def _no_part(cls, label: str | None) -> str | None:
        if label is not None and re.fullmatch(PARTS, label):
            raise ValueError(f"{label!r} names a part of a metric; give another")
        return label

    def metrics(self) -> tuple[str, ...]:
        """Names of what it measures, without the split: `knn_top1`, `knn_top1.label`."""
        return tuple(labelled(name, self.label) for name in self.measures())

    def measures(self) -> tuple[str, ...]:
        """The same without the label."""
        raise AssertionError("each protocol names its metrics")


class KnnEval(EvalSpec):
    """Cosine k-nearest-neighbour vote."""

    version: ClassVar[int] = 3
    kind: Literal["knn"]
    """Names this protocol."""
    k: Count | tuple[Count, ...] = 20
    """Neighbours, or a list of numbers of which the one that is best on the validation split
    is reported. Default 20: the field's custom (DINO)."""

    def ks(self) -> tuple[int, ...]:
        """The numbers of neighbours to try."""
        return self.k if isinstance(self.k, tuple) else (self.k,)

    def measures(self) -> tuple[str, ...]:
        """`knn_top1`."""
        return ("knn_top1",)

    def checks(self) -> Iterator[Problem]:
        """A list holds something, once."""
        if not self.ks() or len(set(self.ks())) < len(self.ks()):
            yield Problem(("k",), f"{list(self.ks())}: give one or more different numbers")


class LinearEval(EvalSpec):
    """Multinomial logistic regression, its strength chosen on the validation split."""

    version: ClassVar[int] = 4
    kind: Literal["linear"]
    """Names this protocol."""

    def measures(self) -> tuple[str, ...]:
        """`linear_top1`."""
        return ("linear_top1",)


class LinearSgdEval(EvalSpec):
    """VISSL's linear probe, the one of the StoP paper: four heads trained by SGD at once.

    {last block, last four blocks} x {BatchNorm, none}; the best on the validation split counts.
    """

    kind: Literal["linear_sgd"]
    """Names this protocol."""
    epochs: Epochs = 28
    """Passes over the training split. Default 28: VISSL on ImageNet."""
    steps: Annotated[tuple[Count, ...], Field(max_length=100)] = (8, 16, 24)
    """Epochs that have ended when the learning rate falls to a tenth. Default 8, 16, 24."""
    lr: float = Field(default=0.01, gt=0, le=1000)
    """Learning rate for 256 images a batch; scaled by the batch. Default 0.01."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of Nesterov's kind. Default 0.9."""
    weight_decay: float = Field(default=5e-4, ge=0, le=1)
    """On all but the BatchNorms. Default 5e-4."""
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = 256
    """Images of a step, at least 2: BatchNorm needs several. Default 256."""
    augment: bool = True
    """Train on random resized crops, flipped half of the time; false: on whole images, whose
    features are computed once. Default true."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Range of the crop's share of the image's area (fraction). Default 0.08 to 1: torchvision."""

    def measures(self) -> tuple[str, ...]:
        """`linear_sgd_top1`."""
        return ("linear_sgd_top1",)

    def checks(self) -> Iterator[Problem]:
        """Steps rise inside the epochs, the crop's range inside (0, 1]."""
        if list(self.steps) != sorted(set(self.steps)) or any(s >= self.epochs for s in self.steps):
            text = f"{list(self.steps)} must rise and stay below epochs ({self.epochs})"
            yield Problem(("steps",), text, (("epochs",),))
        yield from _crop_problems(self.crop_scale)


class LowShotEval(EvalSpec):
    """The linear probe on a small labelled part, mean over several draws."""

    version: ClassVar[int] = 4
    kind: Literal["low_shot"]
    """Names this protocol."""
    fraction: float | None = Field(default=None, gt=0, le=1)
    """Labelled share of the training split, per class (fraction). Default null."""
    per_class: int | None = Field(default=None, ge=1, le=1_000_000)
    """Labelled images per class. Default null."""
    list: str | None = Field(default=None, min_length=1, max_length=2048)
    """Path of a published subset: a text file with a sample's key or file name a line, as
    imagenet_subsets1/1percent.txt. Default null."""
    penalty: Literal["chosen", "published"] = "chosen"
    """`chosen`: of the probe's strengths the one that is best on the validation split;
    `published`: the authors' 1 % protocol, lambda = 0.0025 / n and no intercept. Default chosen."""
    draws: int = Field(default=3, ge=1, le=100)
    """Independent draws to average; a list is one. Default 3."""

    def measures(self) -> tuple[str, ...]:
        """`low_shot_top1`."""
        return ("low_shot_top1",)

    def checks(self) -> Iterator[Problem]:
        """One of the three amounts."""
        given = [self.fraction, self.per_class, self.list]
        if sum(one is not None for one in given) != 1:
            text = "give either fraction or per_class, or a list"
            yield Problem(("fraction",), text, (("per_class",), ("list",)))
        if self.list is not None and "://" in self.list:
            yield Problem(("list",), f"{self.list!r} is a URL; give the path of a text file")


class LocationEval(EvalSpec):
    """R2 of patch row and column read linearly from patch features."""

    version: ClassVar[int] = 2
    kind: Literal["location"]
    """Names this protocol."""
    block: int | None = Field(default=None, ge=0, le=1000)
    """Read the tokens after so many blocks, each after the final norm (0: the embedding); null:
    after the last one. Default null."""

    def measures(self) -> tuple[str, ...]:
        """`location_r2`."""
        return ("location_r2",)


class RobustnessEval(EvalSpec):
    """The linear probe on test images that are moved, or cropped more tightly."""

    version: ClassVar[int] = 2
    kind: Literal["robustness"]
    """Names this protocol."""
    shift: int = Field(default=4, ge=1, le=1024)
    """Pixels by which images are moved: up, down, left and right, the border repeated.
    Default 4."""
    crop: float = Field(default=0.75, gt=0, lt=1)
    """Side of the central crop as a share of the image's (fraction); it is resized to the
    whole. Default 0.75."""

    def measures(self) -> tuple[str, ...]:
        """`robust_shift_top1`, `robust_crop_top1`."""
        return ("robust_shift_top1", "robust_crop_top1")


class FinetuneEval(EvalSpec):
    """End-to-end fine-tuning of a copy of the encoder with a linear head."""

    kind: Literal["finetune"]
    """Names this protocol."""
    epochs: Epochs = 50
    """Passes over the labelled images. Default 50."""
    lr: float = Field(default=1e-3, gt=0, le=10)
    """Learning rate of the head, at its height. Default 1e-3."""
    warmup_epochs: float = Field(default=5, ge=0, le=10_000)
    """Epochs of linear warm-up; a cosine to 0 follows. Default 5: MAE."""
    layer_decay: float = Field(default=0.65, gt=0, le=1)
    """Each block's learning rate as a share of the next one's. Default 0.65: MAE's ViT-B."""
    weight_decay: float = Field(default=0.05, ge=0, le=1)
    """On matrices. Default 0.05: MAE."""
    batch_size: Count = 128
    """Images of a step. Default 128."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Range of the crop's share of the image's area (fraction). Default 0.08 to 1: torchvision."""
    fraction: float | None = Field(default=None, gt=0, le=1)
    """Labelled share of the training split, per class (fraction); null: all. Default null."""
    per_class: int | None = Field(default=None, ge=1, le=1_000_000)
    """Labelled images per class; null: all. Default null."""

    def measures(self) -> tuple[str, ...]:
        """`finetune_top1`."""
        return ("finetune_top1",)

    def checks(self) -> Iterator[Problem]:
        """At most one amount; warm-up inside the epochs, the crop's range inside (0, 1]."""
        if self.fraction is not None and self.per_class is not None:
            text = "give either fraction or per_class, not both"
            yield Problem(("fraction",), text, (("per_class",),))
        if self.warmup_epochs >= self.epochs:
            text = f"{self.warmup_epochs:g} must be below epochs ({self.epochs})"
            yield Problem(("warmup_epochs",), text, (("epochs",),))
        yield from _crop_problems(self.crop_scale)


class SegmentationEval(EvalSpec):
    """Labels of training images' patches, carried over to the nearest test patches.

    Needs a `.seg.png` member in every sample: a class index a pixel, 255 for none.
    """

    version: ClassVar[int] = 2
    kind: Literal["segmentation"]
    """Names this protocol."""
    k: Count = 5
    """Nearest patches that are asked. Default 5: DINO on DAVIS."""
    temperature: float = Field(default=0.1, gt=0, le=100)
    """They weigh exp(cosine similarity / temperature). Default 0.1: DINO on DAVIS."""

    def measures(self) -> tuple[str, ...]:
        """`segmentation_miou`."""
        return ("segmentation_miou",)


Protocol = Annotated[
    KnnEval
    | LinearEval
    | LinearSgdEval
    | LowShotEval
    | LocationEval
    | RobustnessEval
    | FinetuneEval
    | SegmentationEval,
    Field(discriminator="kind"),
]
"""Evaluations of an encoder: one protocol a file, `suite` runs them."""


def versioned(protocol: Protocol) -> str:
    """The protocol's name with its version: `linear/4`."""
    return f"{protocol.kind}/{protocol.version}"


def labelled(name: str, label: str | None) -> str:
    """The name of a metric or of a part of it, with a protocol's label behind the metric."""
    metric, dot, part = name.partition(".")
    return f"{metric}.{label}{dot}{part}" if label else name


def repeated(protocols: Sequence[Protocol]) -> Iterator[tuple[Path, str]]:
    """Where a protocol measures what one before it does."""
    for number, one in enumerate(protocols):
        before = {name for other in protocols[:number] for name in other.metrics()}
        if twice := [name for name in one.metrics() if name in before]:
            text = f"{twice[0]!r} is measured before; a protocol that comes again needs a label"
            yield (number, "label"), text


def deeper_than(protocols: Iterable[Protocol], depth: int) -> Iterator[tuple[Path, str]]:
    """Where a protocol looks at a block that an encoder of this depth does not have."""
    for number, one in enumerate(protocols):
        if one.kind == "location" and one.block is not None and one.block > depth:
            yield (number, "block"), f"{one.block}: the encoder has {depth} blocks"


def _crop_problems(scale: tuple[float, float]) -> Iterator[Problem]:
    low, high = scale
    if not 0 < low <= high <= 1:
        yield Problem(("crop_scale",), f"[{low}, {high}] must rise inside (0, 1]")
