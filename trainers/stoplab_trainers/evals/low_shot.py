"""The linear probe on few labels: the published 1 % protocol's question, asked several times."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from stoplab_platform.randomness import Stream, generator
from stoplab_platform.specs.evals import LowShotEval
from stoplab_trainers.evals.features import Bank, On
from stoplab_trainers.evals.linear import Probe
from stoplab_trainers.evals.outcome import Outcome, accuracy


def low_shot(protocol: LowShotEval, bank: Bank, on: On, seed: int) -> Outcome:
    """Mean over draws of labelled rows; a draw depends on the seed, not on the encoder.

    The strength is chosen on the whole validation split, which few labels would not afford:
    the same for all encoders, but not the published one-percent protocol, which fixes it.
    """
    amount = f"{protocol.fraction} {protocol.per_class}"
    scores, predictions = [], None
    for draw in range(protocol.draws):
        rows = draw_rows(bank.labels("train"), protocol, seed, draw)
        name = ("low_shot", amount, str(seed), str(draw))
        predictions = bank.once(name, partial(Probe, bank, rows)).predict(on)
        scores.append(accuracy(predictions, bank.labels(on)))
    # Of several draws there is no one prediction that stands behind the mean.
    told = predictions if protocol.draws == 1 else None
    return Outcome({"low_shot_top1": float(np.mean(scores))}, told)


def draw_rows(
    labels: NDArray[np.int64], protocol: LowShotEval, seed: int, draw: int
) -> NDArray[np.int64]:
    """Rows of one draw, the same share or number of each class, at least one of each."""
    random = generator(seed, Stream.EVAL, draw + 1)
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        wanted = protocol.per_class
        if protocol.fraction is not None:
            wanted = max(1, round(protocol.fraction * len(rows)))
        chosen.append(random.permutation(rows)[:wanted])
    return np.sort(np.concatenate(chosen))
