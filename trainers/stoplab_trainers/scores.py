"""A run's evaluations: the EMA encoder, the same encoder untrained, and raw pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from stoplab_platform.specs import RunSpec
from stoplab_platform.specs.evals import Protocol
from stoplab_trainers.evals.suite import evaluate, load_splits, pixel_encoder
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import build_model


class Scores:
    """Protocols on the splits of one run's labelled data."""

    def __init__(self, spec: RunSpec, cache: Path) -> None:
        data = spec.data.eval_data()
        assert data is not None, "a spec with evals has labelled data"
        self._spec = spec
        self._splits = load_splits(data, spec.data.image_size, cache)

    def of(
        self, encoder: Encoder, protocols: Sequence[Protocol], *, on: Literal["val", "test"]
    ) -> dict[str, float]:
        """Metrics of an encoder, named `val/…` or `test/…`."""
        return self._named(on, evaluate(encoder, protocols, self._splits, on=on, seed=self._seed))

    def final(self, encoder: Encoder) -> dict[str, float]:
        """All protocols: on both splits, and on the test split untrained and on raw pixels."""
        protocols, splits = self._spec.evals, self._splits
        untrained = build_model(self._spec).encoder
        pixels = pixel_encoder()
        return {
            **self.of(encoder, protocols, on="val"),
            **self.of(encoder, protocols, on="test"),
            **self._named(
                "init", evaluate(untrained, protocols, splits, on="test", seed=self._seed)
            ),
            **self._named(
                "pixels", evaluate(pixels, protocols, splits, on="test", seed=self._seed)
            ),
        }

    @property
    def _seed(self) -> int:
        return self._spec.seed

    @staticmethod
    def _named(prefix: str, values: dict[str, float]) -> dict[str, float]:
        return {f"{prefix}/{name}": value for name, value in values.items()}
