from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from scipy import stats

from stoplab_platform.ledger import Cell, CellState
from stoplab_platform.trials import rows
from stoplab_sweeps.best import best_of, sentence
from stoplab_sweeps.cells import plan
from stoplab_sweeps.report import judged_apart, sweep_table
from stoplab_sweeps.surface_rows import surface_of
from support_studies import sweep

NOISE = "positions.noise_std"
VALUES = {0.1: [0.50, 0.60, 0.70], 0.2: [0.52, 0.59, 0.74], 0.3: [0.40, 0.51, 0.61]}


def cells(values: dict[float, list[float]], mode: str = "max") -> tuple[Any, list[Cell]]:
    spec = sweep(
        space={NOISE: {"grid": list(values)}},
        replicates=max(map(len, values.values())),
        objective={"metric": "val/knn_top1", "mode": mode},
    )
    found = [
        cell.model_copy(
            update={
                "state": CellState.SUCCEEDED,
                "metrics": {"val/knn_top1": values[cell.point[NOISE]][cell.seed]},
            }
        )
        for cell in plan(spec)
        if cell.seed < len(values[cell.point[NOISE]])
    ]
    return spec, found


def test_the_best_comes_with_its_interval_and_those_it_cannot_be_told_from() -> None:
    found = best_of(*cells(VALUES))
    assert found is not None
    assert found.best.point == {NOISE: 0.2}
    mean, error = sum(VALUES[0.2]) / 3, stats.sem(VALUES[0.2])
    assert found.best.plain() == {
        "point": {NOISE: 0.2},
        "mean": pytest.approx(mean),
        "ci95": pytest.approx(list(stats.t.interval(0.95, 2, loc=mean, scale=error))),
        "n": 3,
    }
    assert found.tied is not None
    # 0.3 lies within the best's own interval, but below it by as much on every seed.
    assert [one.point[NOISE] for one in found.tied] == [0.1]
    assert sentence(found) == (
        "best: noise_std=0.2  val/knn_top1 0.6167 (95 % interval 0.3375 to 0.8959, 3 seeds); "
        "cannot be told apart from it (95 %): noise_std=0.1"
    )


def test_what_other_versions_judged_is_no_rival() -> None:
    spec, found = cells(VALUES)
    now = datetime(2026, 1, 2, tzinfo=UTC)
    aged = [
        cell.model_copy(
            update={
                "certificate": {"protocols": "knn/2" if old else "knn/3"},
                "finished_at": now - timedelta(hours=old),
            }
        )
        for cell in found
        for old in [cell.point[NOISE] == 0.2]
    ]
    best = best_of(spec, aged)
    assert best is not None
    assert (best.best.point, best.n_points) == ({NOISE: 0.1}, 2)
    assert "noise_std=0.2" not in sweep_table(spec, aged)
    assert judged_apart(aged).startswith("3 runs were judged by other versions of the protocols (k")
    assert judged_apart(found) == ""
    assert {point["noise_std"] for point in surface_of(spec, aged)["points"]} == {0.1, 0.3}
    head, body = rows(aged)
    assert {line[head.index("protocols")] for line in body} == {"knn/2", "knn/3"}
    assert "protocols" not in rows(found)[0]


def test_what_other_options_judged_is_no_rival_unless_images_vary_in_size() -> None:
    spec, found = cells(VALUES)
    now = datetime(2026, 1, 2, tzinfo=UTC)

    def judged(*, sizes: bool) -> list[Cell]:
        return [
            cell.model_copy(
                update={
                    "point": {**cell.point, **({"data.image_size": 16} if sizes else {})},
                    "certificate": {"protocols": "knn/3", "judged": "k=1" if old else "k=20"},
                    "finished_at": now - timedelta(hours=old),
                }
            )
            for cell in found
            for old in [cell.point[NOISE] == 0.2]
        ]

    best = best_of(spec, judged(sizes=False))
    assert best is not None
    assert best.best.point == {NOISE: 0.1}
    assert "other options or other images" in judged_apart(judged(sizes=False))
    assert judged_apart(judged(sizes=True)) == ""


def test_the_least_can_be_the_best() -> None:
    found = best_of(*cells(VALUES, mode="min"))
    assert found is not None
    assert found.best.point == {NOISE: 0.3}
    assert found.tied == ()
    assert "worse beyond doubt" in sentence(found)


def test_one_seed_says_so() -> None:
    found = best_of(*cells({0.1: [0.5], 0.2: [0.6]}))
    assert found is not None
    assert (found.best.point, found.best.ci95, found.tied) == ({NOISE: 0.2}, None, None)
    assert "one seed, so no interval" in sentence(found)
    assert "raise replicates" in sentence(found)


def test_the_same_difference_on_every_seed_is_no_certainty() -> None:
    found = best_of(*cells({0.1: [0.5, 0.6, 0.7], 0.2: [0.6, 0.7, 0.8], 0.3: [0.1, 0.3, 0.2]}))
    assert found is not None
    assert (found.tied, found.n_unjudged) == ((), 1)
    assert sentence(found).endswith(
        "; every other point that could be judged is worse beyond doubt (95 %); "
        "1 could not be judged"
    )
    same = best_of(*cells({0.1: [0.5, 0.6], 0.2: [0.5, 0.6]}))
    assert same is not None
    assert same.tied is not None
    assert (len(same.tied), same.n_unjudged) == (1, 0)


def test_whole_points_go_before_lucky_halves() -> None:
    found = best_of(*cells({0.1: [0.5, 0.5], 0.2: [0.9]}))
    assert found is not None
    assert found.best.point == {NOISE: 0.1}
    assert "told" not in sentence(found)


def test_what_ended_early_or_badly_is_no_result() -> None:
    spec, found = cells(VALUES)
    for state in (CellState.PRUNED, CellState.FAILED):
        changed = [cell.model_copy(update={"state": state}) for cell in found]
        assert best_of(spec, changed) is None
