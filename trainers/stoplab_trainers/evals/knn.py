"""Cosine k-nearest-neighbour vote.

Ours: neither the I-JEPA nor the StoP paper has one, nor their code. Votes weigh
exp(similarity / 0.07), the field's custom since DINO.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stoplab_platform.specs.evals import KnnEval
from stoplab_trainers.evals.features import Bank, Features, On
from stoplab_trainers.evals.outcome import Outcome, accuracy

TEMPERATURE = 0.07
SIMILARITIES = 1 << 26  # held at a time


def knn(protocol: KnnEval, bank: Bank, on: On, seed: int) -> Outcome:
    """Vote of the training split's nearest images. Nothing is chosen, nothing is drawn."""
    predictions = knn_predict(
        bank.features("train"), bank.labels("train"), bank.features(on), protocol.k
    )
    return Outcome({"knn_top1": accuracy(predictions, bank.labels(on))}, predictions)


def knn_predict(
    train: Features, labels: NDArray[np.int64], judged: Features, k: int
) -> NDArray[np.int64]:
    """Each judged row's class: [n]. With fewer than ``k`` training rows all of them vote."""
    known, classes = _unit(train), torch.from_numpy(labels)
    k, num_classes = min(k, len(train)), int(labels.max()) + 1
    told = []
    for rows in torch.split(_unit(judged), max(1, SIMILARITIES // len(train))):
        similarity, nearest = (rows @ known.T).topk(k, dim=1)
        votes = torch.zeros(len(rows), num_classes, dtype=torch.float64)
        # exp(s - 1) in place of exp(s): the same ranking without huge numbers.
        votes.scatter_add_(1, classes[nearest], ((similarity.double() - 1) / TEMPERATURE).exp())
        told.append(votes.argmax(dim=1))
    return torch.cat(told).numpy()


def _unit(rows: Features) -> Tensor:
    return functional.normalize(torch.from_numpy(rows), dim=1)
