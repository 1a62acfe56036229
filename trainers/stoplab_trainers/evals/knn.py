"""Cosine k-nearest-neighbour vote.

Ours: neither I-JEPA nor StoP has one. Votes weigh exp(similarity / 0.07), as DINO's do
(dino:eval_knn.py).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stoplab_platform.specs.evals import KnnEval
from stoplab_trainers.evals.features import Bank, Features, On
from stoplab_trainers.evals.outcome import Outcome, accuracy

TEMPERATURE = 0.07
ROWS = 1024  # judged at a time


def knn(protocol: KnnEval, bank: Bank, on: On, seed: int) -> Outcome:
    """Vote of the training split's nearest images; nothing is chosen, so nothing is tuned."""
    predictions = knn_predict(
        bank.features("train"), bank.labels("train"), bank.features(on), protocol.k
    )
    return Outcome({"knn_top1": accuracy(predictions, bank.labels(on))}, predictions)


def knn_predict(
    train: Features, labels: NDArray[np.int64], judged: Features, k: int
) -> NDArray[np.int64]:
    """Each judged row's class: [n]. With fewer than ``k`` training rows all of them vote."""
    train, judged = _unit(train), _unit(judged)
    k = min(k, len(train))
    num_classes = int(labels.max()) + 1
    parts = []
    for start in range(0, len(judged), ROWS):
        similarity = judged[start : start + ROWS] @ train.T
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weights = np.exp(np.take_along_axis(similarity, nearest, axis=1) / TEMPERATURE)
        votes = np.zeros((len(similarity), num_classes))
        np.add.at(votes, (np.arange(len(votes))[:, None], labels[nearest]), weights)
        parts.append(votes.argmax(axis=1))
    return np.concatenate(parts)


def _unit(rows: Features) -> Features:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Features = rows / np.maximum(norms, np.finfo(rows.dtype).tiny)
    return unit
