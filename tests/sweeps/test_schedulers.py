from __future__ import annotations

import json
from typing import Any

import pytest
from ray.tune.experiment import Trial

from stoplab_platform.files import read_json
from stoplab_platform.ledger import Cell, CellState
from stoplab_platform.specs import SweepSpec
from stoplab_sweeps.schedulers import EPOCH, ObeyedScheduler, scheduler_of, scores
from support_studies import comparison, start, sweep

METRIC = "val/knn_top1"
BASE = {"optim.epochs": 16, "evals": [{"kind": "knn", "every_epochs": 2}]}


def scheduled(**scheduler: Any) -> SweepSpec:
    return sweep(BASE, scheduler=scheduler)


def scheduler(*finished: str, **fields: Any) -> ObeyedScheduler:
    cells = [Cell(id=id, index=i, seed=0, state=CellState.SUCCEEDED)
             for i, id in enumerate(finished)]  # fmt: skip
    found = scheduler_of(scheduled(**fields), start().folder, cells)
    assert found is not None
    return found


def trial(cell: str) -> Trial:
    return Trial("run", trial_id=f"t-{cell}", config={"cell": cell}, stub=True)


def report(to: ObeyedScheduler, one: Any, epoch: int, value: float) -> None:
    assert to.on_trial_result(None, one, {EPOCH: epoch, METRIC: value}) == "CONTINUE"


def ended_early(cell: str) -> bool:
    return start().folder.run(cell).prune.exists()


def left_scores(cell: str, *lines: tuple[int, float]) -> None:
    file = start().folder.run(cell).scores
    file.parent.mkdir(parents=True)
    text = (json.dumps({"epoch": e, "step": e, "at": 0, "values": {METRIC: v}}) for e, v in lines)
    file.write_text("".join(f"{line}\n" for line in text) + '{"cut')


def test_no_scheduler_where_none_is_asked_for() -> None:
    assert scheduler_of(sweep(), start().folder, []) is None
    assert scheduler_of(comparison(), start().folder, []) is None


def test_asha_ends_a_run_that_is_behind_at_a_rung() -> None:
    asha = scheduler(kind="asha", grace_epochs=2, reduction_factor=2)
    good, bad = trial("good"), trial("bad")
    for one in (good, bad):
        asha.on_trial_add(None, one)
    report(asha, good, 2, 0.6)
    report(asha, bad, 2, 0.3)
    assert not ended_early("good")
    assert read_json(start().folder.run("bad").prune) == {"intent": "PRUNED", "epoch": 2}
    report(asha, bad, 4, 0.9)  # it may take its time to end, and is not judged again
    asha.on_trial_complete(None, bad, {EPOCH: 4, METRIC: 0.9})
    report(asha, good, 4, 0.61)
    assert not ended_early("good")


def test_the_median_waits_for_enough_others() -> None:
    median = scheduler(kind="median", grace_epochs=2, min_samples=2)
    a, b, c, d = (trial(name) for name in "abcd")
    for one, value in ((a, 0.5), (b, 0.3), (c, 0.6)):
        median.on_trial_add(None, one)
        report(median, one, 2, value)
    assert not any(map(ended_early, "abc"))
    report(median, d, 2, 0.2)
    assert ended_early("d")
    report(median, d, 4, 0.2)
    median.on_trial_complete(None, d, {})


@pytest.mark.parametrize(
    "fields",
    [{"kind": "asha", "grace_epochs": 2}, {"kind": "median", "grace_epochs": 2, "min_samples": 1}],
)
def test_a_new_start_knows_what_earlier_ones_reached(fields: dict[str, Any]) -> None:
    left_scores("old", (2, 0.5), (4, 0.6))
    fresh = scheduler(**fields)
    report_first(fresh, "first")
    assert not ended_early("first")
    told = scheduler("old", **fields)
    report_first(told, "second")
    assert ended_early("second")
    assert not ended_early("old")


def report_first(to: ObeyedScheduler, cell: str) -> None:
    one = trial(cell)
    to.on_trial_add(None, one)
    report(to, one, 2, 0.3)


def test_of_a_repeated_epoch_the_newest_score_counts() -> None:
    left_scores("a", (2, 0.5), (4, 0.6), (4, 0.7))
    assert scores(start().folder.run("a"), METRIC) == [(2, 0.5), (4, 0.7)]
