"""Evaluation protocols on the frozen EMA encoder's mean-pooled patch features."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from stoplab_platform.errors import Problem
from stoplab_platform.specs.base import Spec


class EvalSpec(Spec):
    """What all protocols share."""

    every_epochs: int | None = Field(default=None, ge=1, le=1_000_000)
    """Also run on the validation split each so many epochs; null: only at the end."""

    def metrics(self) -> tuple[str, ...]:
        """Names of what it measures, without the split (`knn_top1`)."""
        raise AssertionError("each protocol names its metrics")


class KnnEval(EvalSpec):
    """Cosine k-nearest-neighbour vote."""

    kind: Literal["knn"]
    """Names this protocol."""
    k: int = Field(default=20, ge=1, le=1_000_000)
    """Neighbours. Default 20: the field's custom (DINO)."""

    def metrics(self) -> tuple[str, ...]:
        """`knn_top1`."""
        return ("knn_top1",)


class LinearEval(EvalSpec):
    """Multinomial logistic regression, its strength chosen on the validation split."""

    kind: Literal["linear"]
    """Names this protocol."""

    def metrics(self) -> tuple[str, ...]:
        """`linear_top1`."""
        return ("linear_top1",)


class LowShotEval(EvalSpec):
    """The linear probe on a small labelled part, mean over several draws."""

    kind: Literal["low_shot"]
    """Names this protocol."""
    fraction: float | None = Field(default=None, gt=0, le=1)
    """Labelled share of the training split, per class (fraction). Default null."""
    per_class: int | None = Field(default=None, ge=1, le=1_000_000)
    """Labelled images per class. Default null."""
    draws: int = Field(default=3, ge=1, le=100)
    """Independent draws to average. Default 3."""

    def metrics(self) -> tuple[str, ...]:
        """`low_shot_top1`."""
        return ("low_shot_top1",)

    def checks(self) -> Iterator[Problem]:
        """One of the two amounts."""
        if (self.fraction is None) == (self.per_class is None):
            yield Problem(("fraction",), "give either fraction or per_class", (("per_class",),))


class LocationEval(EvalSpec):
    """R2 of patch row and column read linearly from patch features."""

    kind: Literal["location"]
    """Names this protocol."""

    def metrics(self) -> tuple[str, ...]:
        """`location_r2`."""
        return ("location_r2",)


Protocol = Annotated[KnnEval | LinearEval | LowShotEval | LocationEval, Field(discriminator="kind")]
