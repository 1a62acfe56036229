"""A run's evaluations: the EMA encoder, the same encoder untrained, and raw pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stoplab_platform.files import write_json
from stoplab_platform.paths import RunFolder
from stoplab_platform.scorebook import Score, write_scores
from stoplab_platform.specs import RunSpec
from stoplab_platform.specs.base import canonical_digest
from stoplab_platform.specs.evals import Protocol, versioned
from stoplab_trainers.checkpoint import weights_sha256
from stoplab_trainers.evals.features import Bank, FrozenEncoder, On
from stoplab_trainers.evals.suite import (
    asked_for,
    check_data,
    evaluate,
    load_splits,
    outcomes,
    pixel_encoder,
    scored,
    scores,
)
from stoplab_trainers.model.encoder import Encoder
from stoplab_trainers.model.jepa import build_model


@dataclass(frozen=True)
class Final:
    """What a finished run is worth."""

    metrics: dict[str, float] = field(default_factory=dict)
    """`val/...`, `test/...`, `init/...`, `pixels/...`."""
    predictions: dict[str, list[int]] = field(default_factory=dict)
    """The class told for each test image, by metric (`test/knn_top1`), and the true `labels`."""
    scores: list[Score] = field(default_factory=list)
    """The metrics with their intervals, and what was chosen."""

    def leave(self, folder: RunFolder) -> None:
        """Write the files of a run's folder."""
        write_json(folder.predictions, self.predictions)
        write_scores(folder, self.scores)


class Scores:
    """Protocols on the splits of one run's labelled data."""

    def __init__(self, spec: RunSpec, cache: Path) -> None:
        data = spec.data.eval_data()
        assert data is not None, "a spec with evals has labelled data"
        self._spec = spec
        self._splits = load_splits(data, spec.data.image_size, cache)
        check_data(spec.evals, self._splits)
        self.fingerprint = canonical_digest([self._splits.fingerprint, *asked_for(spec.evals)])
        """Of what a run is judged by: labelled images and protocols, each with its version."""
        self.protocols = " ".join(sorted({versioned(protocol) for protocol in spec.evals}))
        """The protocols with their versions: `knn/3 linear/4`."""

    def facts(self) -> dict[str, str]:
        """What a pairing of runs also rests on."""
        shared = {"shared": "; ".join(self._splits.shared)} if self._splits.shared else {}
        return {"judged": self.fingerprint, "protocols": self.protocols, **shared}

    def of(
        self, encoder: FrozenEncoder | Bank, protocols: Sequence[Protocol], *, on: On
    ) -> dict[str, float]:
        """Metrics of an encoder, named `val/…` or `test/…`."""
        found = evaluate(encoder, protocols, self._splits, on=on, seed=self._spec.seed)
        return {f"{on}/{name}": value for name, value in found.items()}

    def on_val(self, encoder: Encoder) -> Final:
        """All protocols on the validation split: of a run that is left before its end."""
        return _final(scores(self._bank(encoder), self._spec.evals, self._splits,
                             on="val", seed=self._spec.seed, shown="val"))  # fmt: skip

    def final(self, encoder: Encoder) -> Final:
        """All protocols: on both splits, and on the test split untrained and on raw pixels."""
        spec, protocols, splits = self._spec, self._spec.evals, self._splits
        trained = self._bank(encoder)
        untrained = self._bank(build_model(spec).encoder.to(trained.device))
        tested = outcomes(trained, protocols, splits, on="test", seed=spec.seed)
        rows = [
            *scores(trained, protocols, splits, on="val", seed=spec.seed, shown="val"),
            *scored(protocols, tested, "test"),
            *scores(untrained, protocols, splits, on="test", seed=spec.seed, shown="init"),
            *scores(pixel_encoder(), protocols, splits, on="test", seed=spec.seed, shown="pixels"),
        ]
        predictions = {"labels": trained.labels("test").tolist()}
        for one in tested:
            for name, classes in one.predictions.items():
                predictions[f"test/{name}"] = classes.tolist()
        return _final(rows, predictions)

    def _bank(self, encoder: Encoder) -> Bank:
        """An encoder whose features are kept under its weights and its sizes."""
        sizes = asdict(self._spec.model.sizes())
        name = canonical_digest([sizes, weights_sha256(encoder.state_dict())])
        return Bank(encoder, self._splits, name)


def _final(rows: list[Score], predictions: dict[str, list[int]] | None = None) -> Final:
    return Final({one.name: one.value for one in rows}, predictions or {}, rows)
