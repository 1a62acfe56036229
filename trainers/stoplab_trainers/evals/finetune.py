"""End-to-end fine-tuning: a copy of the encoder and a linear head on the mean token.

The recipe is MAE's (arXiv 2111.06377, Table 9) without mixing of images, drop path and label
smoothing: AdamW, layer-wise learning rates, warm-up and cosine. StoP reports a fine-tuned 1 % of
ImageNet, and gives no recipe.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.nn import functional

from stoplab_platform.specs.evals import FinetuneEval
from stoplab_trainers.data.loader import normalise
from stoplab_trainers.evals.crops import crops
from stoplab_trainers.evals.draws import batches, linear_layer
from stoplab_trainers.evals.features import BATCH, Bank, On, run_frozen
from stoplab_trainers.evals.low_shot import draw_rows
from stoplab_trainers.evals.outcome import Outcome, accuracy, told
from stoplab_trainers.model.encoder import Encoder

BETAS = (0.9, 0.999)
HEAD = 100  # its number among drawn layers, away from linear_sgd's


def finetune(protocol: FinetuneEval, bank: Bank, on: On, seed: int) -> Outcome:
    """Of all epochs the one that is best on the validation split, the first of equals.

    Nothing for what is no `Encoder`. The bank's own encoder is left as it is.
    """
    if not isinstance(bank.encoder, Encoder):
        return Outcome()
    known = ("finetune", protocol, seed)
    tuned, epochs, rows = bank.once(known, lambda: _tune(protocol, bank, seed))
    best = int(np.argmax(epochs))
    predictions = _predictions(tuned, bank, on)
    return told(
        "finetune_top1",
        predictions,
        bank.labels(on),
        chosen={"epoch": float(best + 1)},
        detail={"rows": rows, "val_by_epoch": epochs},
    )


def learning_rate(protocol: FinetuneEval, step: int, steps_an_epoch: int) -> float:
    """Of one step (from 0): linear to its height over the warm-up, then a cosine to 0."""
    done = (step + 1) / steps_an_epoch  # epochs
    if done <= protocol.warmup_epochs:
        return protocol.lr * done / protocol.warmup_epochs
    share = (done - protocol.warmup_epochs) / (protocol.epochs - protocol.warmup_epochs)
    return protocol.lr * (1 + math.cos(math.pi * share)) / 2


class Classifier(nn.Module):
    """An encoder with a linear head on its mean token."""

    def __init__(self, encoder: Encoder, head: nn.Linear) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def features(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b classes"]:
        """Class scores."""
        scores: Tensor = self.head(self.encoder.features(images))
        return scores


def _tune(protocol: FinetuneEval, bank: Bank, seed: int) -> tuple[Classifier, list[float], int]:
    """The classifier of the best epoch, each epoch's accuracy on the validation split, and how
    many rows it was trained on."""
    split, device = bank.split("train"), bank.device
    rows = draw_rows(split.labels, protocol, seed, 0)
    labels = torch.from_numpy(split.labels[rows]).to(device)
    model = _classifier(bank, seed)
    optimiser = _optimiser(protocol, model)
    batch = min(protocol.batch_size, len(rows))
    step, epochs, best = 0, list[float](), model
    for epoch in range(protocol.epochs):
        plan = batches(seed, epoch, len(rows), batch)
        shown = crops(split, [rows[one] for one in plan], seed, epoch, protocol.crop_scale)
        for one, images in zip(plan, shown, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(protocol, step, len(plan)) * group["lr_scale"]
            scores = model.features(normalise(images.to(device)))
            loss = functional.cross_entropy(scores, labels[torch.from_numpy(one).to(device)])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            step += 1
        epochs.append(accuracy(_predictions(model, bank, "val"), bank.labels("val")))
        if epochs[-1] == max(epochs) and epochs.count(epochs[-1]) == 1:
            best = copy.deepcopy(model)
    return best, epochs, len(rows)


def _classifier(bank: Bank, seed: int) -> Classifier:
    """A trainable copy, its table of positions as fixed as ever."""
    encoder = copy.deepcopy(bank.encoder)
    assert isinstance(encoder, Encoder)
    encoder.requires_grad_(True)
    encoder.vit.pos_embed.requires_grad_(False)
    head = linear_layer(seed, HEAD, encoder.width, int(bank.labels("train").max()) + 1)
    return Classifier(encoder, head).to(bank.device).train()


def _optimiser(protocol: FinetuneEval, model: Classifier) -> torch.optim.AdamW:
    groups = param_groups_layer_decay(
        model.encoder.vit, protocol.weight_decay, layer_decay=protocol.layer_decay
    )
    head = [
        {"params": [model.head.weight], "weight_decay": protocol.weight_decay, "lr_scale": 1.0},
        {"params": [model.head.bias], "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    return torch.optim.AdamW([*groups, *head], lr=protocol.lr, betas=BETAS)


def _predictions(model: Classifier, bank: Bank, part: On) -> NDArray[np.int64]:
    scores = run_frozen(model, model.features, bank.split(part).batches(BATCH))
    return np.asarray(scores.argmax(axis=1), dtype=np.int64)
