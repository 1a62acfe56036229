"""What evaluations found: the rows of a run's `evaluation.json`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from stoplab_platform.files import read_json, write_json
from stoplab_platform.paths import RunFolder

Shown = Literal["val", "test", "init", "pixels"]
"""Split of a trained encoder's score; `init` and `pixels` are the untrained encoder and the raw
pixels on the test split. What a metric's name begins with."""


class Score(BaseModel):
    """One number of one protocol, and how far the images it rests on let it be told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    protocol: str
    """`linear`, `knn`, ..."""
    version: int
    """Of the protocol; scores of two versions are not comparable."""
    split: Shown
    """What the metric's name begins with."""
    metric: str
    """Its name without the split: `linear_top1`."""
    value: float
    """Accuracies are fractions."""
    low: float
    """Lower end of the 95 % percentile bootstrap interval over the judged images."""
    high: float
    """Upper end."""
    n: int
    """Images judged."""
    chosen: dict[str, float | str] = {}
    """Hyper-parameters, as chosen on the validation split."""
    detail: dict[str, Any] = {}
    """What else the protocol can tell: other heads, other k, draws."""

    @property
    def name(self) -> str:
        """The metric's whole name: `test/linear_top1`."""
        return f"{self.split}/{self.metric}"


_ROWS = TypeAdapter(list[Score])


def write_scores(folder: RunFolder, scores: list[Score]) -> None:
    """Leave the rows as the run's `evaluation.json`."""
    write_json(folder.evaluation, _ROWS.dump_python(scores, mode="json"))


def read_scores(folder: RunFolder) -> list[Score]:
    """A run's rows; none where it was not judged, or by a release that left none."""
    return _ROWS.validate_python(read_json(folder.evaluation) or [])
