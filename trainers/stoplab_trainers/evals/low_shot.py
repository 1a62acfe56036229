"""The linear probe on few labels, drawn by class or listed in a file.

The published one-percent protocol is `list: …/1percent.txt` with `penalty: published`
(StoP:logistic_eval.py@72206b3): mean tokens of the last block, no intercept, lambda = 0.0025 / n.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stoplab_platform.errors import DataError, DataMissing
from stoplab_platform.randomness import Stream, generator
from stoplab_platform.settings import Settings
from stoplab_platform.specs.evals import FinetuneEval, LowShotEval
from stoplab_platform.specs.places import is_inside
from stoplab_trainers.evals.features import Bank, On
from stoplab_trainers.evals.linear import STRENGTHS, Probe
from stoplab_trainers.evals.outcome import Outcome, accuracy, right
from stoplab_trainers.evals.splits import Splits

PUBLISHED = 1 / 0.0025  # C = 1 / (n lambda), whatever n


def low_shot(protocol: LowShotEval, bank: Bank, on: On, seed: int) -> Outcome:
    """Mean over draws of labelled rows; a draw depends on the seed, not on the encoder.

    A chosen strength is chosen on the whole validation split, which few labels would not afford:
    the same for all encoders.
    """
    published = protocol.penalty == "published"
    probe = partial(
        Probe, strengths=[PUBLISHED] if published else STRENGTHS, intercept=not published
    )
    labels, draws, detail = bank.labels(on), [], dict[str, Any]()
    for draw, rows in enumerate(_draws(protocol, bank, seed, detail)):
        name = ("low_shot", protocol, seed, draw)
        detail["rows"] = len(rows)
        found = bank.once(name, partial(probe, bank, rows))
        draws.append((found.predict(bank.features(on)), found.strength))
    scores = [accuracy(predictions, labels) for predictions, _ in draws]
    detail["draws"] = [
        {"top1": score, "C": strength} for score, (_, strength) in zip(scores, draws, strict=True)
    ]
    # Of several draws there is no one prediction that stands behind the mean.
    alone = {"low_shot_top1": draws[0][0]} if len(draws) == 1 else {}
    each = {f"low_shot_top1.draw{i}": told for i, (told, _) in enumerate(draws)}
    return Outcome(
        {"low_shot_top1": float(np.mean(scores))},
        {"low_shot_top1": np.mean([right(told, labels) for told, _ in draws], axis=0)},
        alone or each,
        detail=detail,
    )


def draw_rows(
    labels: NDArray[np.int64], amount: LowShotEval | FinetuneEval, seed: int, draw: int
) -> NDArray[np.int64]:
    """Rows of one draw, the same share or number of each class, at least one of each.

    All rows where neither is given.
    """
    random = generator(seed, Stream.EVAL, draw + 1)
    chosen = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        wanted = amount.per_class
        if amount.fraction is not None:
            wanted = max(1, round(amount.fraction * len(rows)))
        chosen.append(random.permutation(rows)[:wanted])
    return np.sort(np.concatenate(chosen))


def listed_rows(path: Path, splits: Splits) -> tuple[NDArray[np.int64], int]:
    """Rows of the training split that a file lists, and how many are held out for validation.

    A line is a sample's key, or a file name whose stem is that of one key alone. DataError where
    a line names no sample, or several.
    """
    lines = [line.strip() for line in read_list(path).splitlines() if line.strip()]
    keys = splits.train.keys
    by_name: dict[str, list[int]] = {}
    for row, key in enumerate([*keys, *splits.set_aside]):
        for name in {key, _stem(key)}:
            by_name.setdefault(name, []).append(row)
    found = {
        line: next((by_name[name] for name in _names(line) if name in by_name), [])
        for line in dict.fromkeys(lines)
    }
    _check(path, found, len(keys))
    rows = sorted(row for matches in found.values() for row in matches)
    fitted = [row for row in dict.fromkeys(rows) if row < len(keys)]
    if not fitted:
        raise DataError(f"{path} lists no sample that may be fitted on")
    return np.asarray(fitted, dtype=np.int64), len(set(rows)) - len(fitted)


def read_list(path: Path) -> str:
    """The text of a list of samples; DataMissing where it cannot be read, DataError where it may
    not be."""
    if not is_inside(path, Settings().data_roots):
        raise DataError(f"the list {path} lies outside of what STOPLAB_DATA_ROOTS allows")
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataMissing(f"the list {path} cannot be read: {error}") from error


def _draws(
    protocol: LowShotEval, bank: Bank, seed: int, detail: dict[str, Any]
) -> Sequence[NDArray[np.int64]]:
    labels = bank.labels("train")
    if protocol.list is None:
        return [draw_rows(labels, protocol, seed, draw) for draw in range(protocol.draws)]
    rows, held_out = listed_rows(Path(protocol.list), bank.splits)
    detail |= {"listed": len(rows) + held_out, "held_out": held_out}
    return [rows]


def _check(path: Path, found: dict[str, list[int]], num_keys: int) -> None:
    unknown = [line for line, rows in found.items() if not rows]
    several = [line for line, rows in found.items() if len(rows) > 1]
    if unknown or several:
        first = (unknown or several)[0]
        raise DataError(
            f"{path}: of {len(found)} names {len(unknown)} are no sample of data.train "
            f"({num_keys} samples) and {len(several)} could be several; the first is {first!r}. "
            "Give a sample's key or its file name a line"
        )


def _names(line: str) -> tuple[str, str, str]:
    """What a line may mean, the most exact first: a key, a file below its folder, a file."""
    folder, slash, _ = line.rpartition("/")
    return line, folder + slash + _stem(line), _stem(line)


def _stem(name: str) -> str:
    """A name without folder and extension: up to the first dot, as shards cut keys."""
    return name.rpartition("/")[2].partition(".")[0]
