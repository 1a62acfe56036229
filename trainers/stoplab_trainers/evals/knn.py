"""Cosine k-nearest-neighbour vote.

Ours: neither the I-JEPA nor the StoP paper has one, nor their code. Votes weigh
exp(similarity / 0.07), the field's custom since DINO.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stoplab_platform.specs.evals import KnnEval
from stoplab_trainers.evals.features import Bank, On
from stoplab_trainers.evals.kept import Features
from stoplab_trainers.evals.outcome import Outcome, accuracy, told

TEMPERATURE = 0.07
SIMILARITIES = 1 << 26  # held at a time

Labels = NDArray[np.int64]


def knn(protocol: KnnEval, bank: Bank, on: On, seed: int) -> Outcome:
    """Vote of the training split's nearest images; of several k the best on the validation split.

    Of equally good ones the first of the list. Nothing is drawn.
    """
    ks = protocol.ks()

    def votes(part: On) -> dict[int, Labels]:
        train, labels = bank.features("train"), bank.labels("train")
        return bank.once(
            ("knn", ks, part),
            lambda: knn_predict(train, labels, bank.features(part), ks, bank.device),
        )

    if len(ks) == 1:
        return told("knn_top1", votes(on)[ks[0]], bank.labels(on))
    by_split = {
        part: {k: accuracy(row, bank.labels(part)) for k, row in votes(part).items()}
        for part in dict.fromkeys(("val", on))
    }
    best = max(ks, key=lambda k: by_split["val"][k])
    detail = {"k": {str(k): {part: row[k] for part, row in by_split.items()} for k in ks}}
    chosen = {"k": float(best)}
    return told("knn_top1", votes(on)[best], bank.labels(on), chosen=chosen, detail=detail)


def knn_predict(
    train: Features,
    labels: Labels,
    judged: Features,
    ks: Sequence[int],
    device: torch.device | str = "cpu",
) -> dict[int, Labels]:
    """Each judged row's class, by k: [n]. With fewer than k training rows all of them vote.

    ``device``: where similarities are computed.
    Of equally near rows the first ones vote; of equal votes the lowest class wins.
    """
    known, classes = _unit(train).to(device), torch.from_numpy(labels)
    num_classes = int(labels.max()) + 1
    found: dict[int, list[Labels]] = {k: [] for k in ks}
    for rows in torch.split(_unit(judged), max(1, SIMILARITIES // len(train))):
        similarity, nearest = (one.cpu() for one in _nearest(rows.to(device) @ known.T, ks))
        # exp(s - 1) in place of exp(s): the same ranking without huge numbers.
        weights, voted = ((similarity.double() - 1) / TEMPERATURE).exp(), classes[nearest]
        for k in ks:
            votes = torch.zeros(len(rows), num_classes, dtype=torch.float64)
            votes.scatter_add_(1, voted[:, :k], weights[:, :k])
            found[k].append(votes.numpy().argmax(axis=1))
    return {k: np.concatenate(rows) for k, rows in found.items()}


def _nearest(
    similarity: Float[Tensor, "n rows"], ks: Sequence[int]
) -> tuple[Float[Tensor, "n k"], Int64[Tensor, "n k"]]:
    """The nearest rows, nearest first, enough for the largest k.

    `topk` leaves open which of equally near rows it takes, so where that would decide about a
    vote, rows are sorted in full.
    """
    num_rows = similarity.shape[1]
    values, rows = similarity.topk(min(max(ks) + 1, num_rows), dim=1)
    ends = [k for k in ks if k < num_rows]
    tied = torch.stack([values[:, k - 1] == values[:, k] for k in ends]).any(0) if ends else None
    if tied is not None and tied.any():
        ordered = similarity[tied].sort(dim=1, descending=True, stable=True)
        values[tied] = ordered.values[:, : values.shape[1]]
        rows[tied] = ordered.indices[:, : values.shape[1]]
    return values, rows


def _unit(rows: Features) -> Tensor:
    return functional.normalize(torch.from_numpy(rows), dim=1)
