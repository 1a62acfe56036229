"""VISSL's linear probe: heads trained by SGD on the frozen encoder, all at once.

{last block, last four blocks} x {BatchNorm, none}, as StoP evaluates (paper C.2;
vissl:configs/config/benchmark/linear_image_classification/imagenet1k, @04788de). The paper
reports the best of the heads on the test split; here the validation split decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stoplab_platform.specs.evals import LinearSgdEval
from stoplab_trainers.data.loader import normalise
from stoplab_trainers.evals.crops import crops
from stoplab_trainers.evals.draws import batches, linear_layer
from stoplab_trainers.evals.features import Bank, On, Part, at_rest, deep_features
from stoplab_trainers.evals.outcome import Outcome, accuracy, told
from stoplab_trainers.model.encoder import Encoder

Labels = NDArray[np.int64]
BATCH_OF_LR = 256  # the learning rate is given for so many images


class Kind(NamedTuple):
    """What a head sees."""

    deep: bool
    batch_norm: bool


HEADS = {
    "last": Kind(deep=False, batch_norm=False),
    "last_bn": Kind(deep=False, batch_norm=True),
    "last4": Kind(deep=True, batch_norm=False),
    "last4_bn": Kind(deep=True, batch_norm=True),
}


def linear_sgd(protocol: LinearSgdEval, bank: Bank, on: On, seed: int) -> Outcome:
    """The head that is best on the validation split; nothing for what is no `Encoder`.

    Of equally good heads the first of `HEADS`. The weights are those of the last epoch.
    """
    if bank.deep("val") is None:
        return Outcome()
    heads = bank.once(("linear_sgd", protocol, seed), lambda: _train(protocol, bank, seed))
    by_split = {
        part: {name: accuracy(row, bank.labels(part)) for name, row in _tell(heads, bank, part)}
        for part in dict.fromkeys(("val", on))
    }
    best = max(HEADS, key=lambda name: by_split["val"][name])
    detail = {"heads": {name: {p: row[name] for p, row in by_split.items()} for name in HEADS}}
    predictions = dict(_tell(heads, bank, on))[best]
    labels = bank.labels(on)
    return told("linear_sgd_top1", predictions, labels, chosen={"head": best}, detail=detail)


def learning_rate(protocol: LinearSgdEval, batch: int, epoch: int) -> float:
    """Of one epoch (from 0): scaled by the batch, a tenth after each of the steps."""
    falls = sum(step <= epoch for step in protocol.steps)
    return protocol.lr * batch / BATCH_OF_LR * 0.1**falls


class Head(nn.Module):
    """A linear classifier, perhaps behind a BatchNorm."""

    def __init__(self, kind: Kind, layer: nn.Linear, width: int) -> None:
        super().__init__()
        self.kind, self.width = kind, width
        self.norm = nn.BatchNorm1d(layer.in_features) if kind.batch_norm else nn.Identity()
        self.layer = layer

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        """Class scores, from the deep features or their last ``width`` channels."""
        seen = features if self.kind.deep else features[:, -self.width :]
        scores: Tensor = self.layer(self.norm(seen))
        return scores


def _train(protocol: LinearSgdEval, bank: Bank, seed: int) -> nn.ModuleDict:
    encoder, labels = bank.encoder, torch.from_numpy(bank.labels("train")).to(bank.device)
    assert isinstance(encoder, Encoder)
    deep, num_classes = bank.deep("val"), int(labels.max()) + 1
    assert deep is not None
    made = {}
    for number, (name, kind) in enumerate(HEADS.items()):
        inputs = deep.shape[1] if kind.deep else encoder.width
        layer = linear_layer(seed, number, inputs, num_classes)
        made[name] = Head(kind, layer, encoder.width)
    heads = nn.ModuleDict(made).to(bank.device).train()
    optimiser = _optimiser(protocol, heads)
    batch = min(protocol.batch_size, len(labels))
    for epoch in range(protocol.epochs):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(protocol, batch, epoch)
        for rows, features in _features(protocol, bank, seed, epoch, batch):
            truth = labels[rows]
            # The heads share no weight: one step on the sum is a step of each.
            losses = [functional.cross_entropy(head(features), truth) for head in heads.values()]
            optimiser.zero_grad()
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return heads.eval()


def _optimiser(protocol: LinearSgdEval, heads: nn.ModuleDict) -> torch.optim.SGD:
    norms = [p for head in heads.values() for p in head.norm.parameters()]  # type: ignore[union-attr]
    layers = [p for head in heads.values() for p in head.layer.parameters()]  # type: ignore[union-attr]
    groups: list[dict[str, Any]] = [{"params": layers}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.SGD(
        groups,
        lr=protocol.lr,
        momentum=protocol.momentum,
        nesterov=protocol.momentum > 0,
        weight_decay=protocol.weight_decay,
    )


def _features(
    protocol: LinearSgdEval, bank: Bank, seed: int, epoch: int, batch: int
) -> Iterator[tuple[Int64[Tensor, " b"], Float[Tensor, "b d"]]]:
    """Rows of the training split and their features, batch by batch."""
    encoder, split = bank.encoder, bank.split("train")
    assert isinstance(encoder, Encoder)
    plan = batches(seed, epoch, len(split), batch)
    if not protocol.augment:
        deep = bank.deep("train")
        assert deep is not None
        for rows in plan:
            picked = torch.from_numpy(deep[rows]).to(bank.device)
            yield torch.from_numpy(rows).to(bank.device), picked
        return
    call, shown = deep_features(encoder), crops(split, plan, seed, epoch, protocol.crop_scale)
    for rows, images in zip(plan, shown, strict=True):
        with at_rest(encoder):
            features = call(normalise(images.to(bank.device))).float()
        yield torch.from_numpy(rows).to(bank.device), features


@torch.no_grad()
def _tell(heads: nn.ModuleDict, bank: Bank, part: Part) -> list[tuple[str, Labels]]:
    """Each head's predictions: [n]."""
    deep = bank.deep(part)
    assert deep is not None
    features = torch.from_numpy(deep).to(bank.device)
    return [(name, head(features).argmax(dim=1).cpu().numpy()) for name, head in heads.items()]
