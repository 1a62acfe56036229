"""A run's evaluations: the EMA encoder, the same encoder untrained, and raw pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stoplab_platform.specs import RunSpec
from stoplab_platform.specs.base import canonical_digest
from stoplab_platform.specs.evals import Protocol
from stoplab_trainers.evals.features import Bank, FrozenEncoder, On
from stoplab_trainers.evals.suite import VERSION, evaluate, load_splits, outcomes, pixel_encoder
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import build_model


@dataclass(frozen=True)
class Final:
    """What a finished run is worth."""

    metrics: dict[str, float]
    """`val/...`, `test/...`, `init/...`, `pixels/...`."""
    predictions: dict[str, list[int]]
    """The class told for each test image, by metric (`test/knn_top1`), and the true `labels`."""


class Scores:
    """Protocols on the splits of one run's labelled data."""

    def __init__(self, spec: RunSpec, cache: Path) -> None:
        data = spec.data.eval_data()
        assert data is not None, "a spec with evals has labelled data"
        self._spec = spec
        self._splits = load_splits(data, spec.data.image_size, cache)

    @property
    def fingerprint(self) -> str:
        """Of what a run is judged by: labelled images and protocols."""
        protocols = [protocol.plain() for protocol in self._spec.evals]
        return canonical_digest([VERSION, self._splits.fingerprint, protocols])

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

    def final(self, encoder: Encoder) -> Final:
        """All protocols: on both splits, and on the test split untrained and on raw pixels."""
        spec, protocols = self._spec, self._spec.evals
        trained = Bank(encoder, self._splits)
        untrained = build_model(spec).encoder.to(next(encoder.parameters()).device)
        tested = outcomes(trained, protocols, self._splits, on="test", seed=spec.seed)
        metrics = {
            **self.of(trained, protocols, on="val"),
            **{f"test/{name}": value for one in tested for name, value in one.metrics.items()},
            **self.of(untrained, protocols, on="test", prefix="init"),
            **self.of(pixel_encoder(), protocols, on="test", prefix="pixels"),
        }
        predictions = {"labels": trained.labels("test").tolist()}
        for one in tested:
            if one.predictions is not None:
                predictions |= {f"test/{name}": one.predictions.tolist() for name in one.metrics}
        return Final(metrics, predictions)
