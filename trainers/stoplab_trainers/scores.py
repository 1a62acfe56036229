"""A run's evaluations: the EMA encoder, the same encoder untrained, and raw pixels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from stoplab_platform.specs import RunSpec
from stoplab_platform.specs.evals import Protocol
from stoplab_trainers.evals.features import Bank, FrozenEncoder, On
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
        self,
        encoder: FrozenEncoder | Bank,
        protocols: Sequence[Protocol],
        *,
        on: On,
        prefix: str | None = None,
    ) -> dict[str, float]:
        """Metrics of an encoder, named `val/…` or `test/…` unless a prefix is given."""
        found = evaluate(encoder, protocols, self._splits, on=on, seed=self._spec.seed)
        return {f"{prefix or on}/{name}": value for name, value in found.items()}

    def final(self, encoder: Encoder) -> dict[str, float]:
        """All protocols: on both splits, and on the test split untrained and on raw pixels."""
        spec, protocols = self._spec, self._spec.evals
        trained = Bank(encoder, self._splits)
        untrained = build_model(spec).encoder.to(next(encoder.parameters()).device)
        return {
            **self.of(trained, protocols, on="val"),
            **self.of(trained, protocols, on="test"),
            **self.of(untrained, protocols, on="test", prefix="init"),
            **self.of(pixel_encoder(), protocols, on="test", prefix="pixels"),
        }
