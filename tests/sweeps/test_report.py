from __future__ import annotations

from typing import Any

from stoplab_platform.ledger import Cell, CellState
from stoplab_sweeps.compare import result
from stoplab_sweeps.report import (
    comparison_markdown,
    comparison_table,
    failures,
    sweep_table,
    table,
)
from support_studies import certificate, comparison, finished, sweep

NOISE = "positions.noise_std"


def pairs() -> list[Cell]:
    values = {0: (0.50, 0.54), 1: (0.52, 0.57), 2: (0.48, 0.53)}
    return [
        finished(arm, seed, value)
        for seed, pair in values.items()
        for arm, value in zip(("deterministic", "stochastic"), pair, strict=True)
    ]


def point(noise: float, seed: int, value: float | None, **changes: Any) -> Cell:
    metrics = {} if value is None else {"val/knn_top1": value}
    state = CellState.FAILED if value is None else CellState.SUCCEEDED
    cell = Cell(id=f"p{noise}-s{seed}", index=0, point={NOISE: noise}, seed=seed)
    return cell.model_copy(update={"metrics": metrics, "state": state, **changes})


def test_columns_are_aligned() -> None:
    assert table(("a", "bb"), [("ccc", "d")]).splitlines() == ["a    bb", "ccc  d"]


def test_a_comparison_shows_blocks_means_context_and_verdict() -> None:
    judged = result(comparison(), pairs())
    lines = comparison_table(judged).splitlines()
    assert lines[0].split() == [
        "seed",
        "deterministic",
        "stochastic",
        "stochastic",
        "-",
        "deterministic",
    ]
    assert lines[1].split() == ["0", "0.5000", "0.5400", "+0.0400"]
    assert lines[4].split() == ["mean", "0.5000", "0.5467", "+0.0467"]
    assert any(line.startswith("init/knn_top1: 0.4000") for line in lines)
    assert any(line.startswith("pixels/knn_top1: 0.9000") for line in lines)
    assert lines[-1] == judged["sentence"] + "."


def test_a_half_block_shows_what_is_missing() -> None:
    lines = comparison_table(result(comparison(), pairs()[:-1])).splitlines()
    assert lines[3].split() == ["2", "0.4800", "-", "-"]


def test_the_page_names_pairing_and_baseline() -> None:
    page = comparison_markdown(comparison(), result(comparison(), pairs()))
    assert page.startswith("# pairs\n\n**stochastic is better than deterministic")
    assert "| 0 | 0.5000 | 0.5400 | +0.0400 |" in page
    assert "- pairing: paired, proved" in page
    assert "- baseline: ijepa" in page


def test_the_page_tells_every_statistic_of_every_arm() -> None:
    arms = {"a": {}, "b": {}, "c": {}}
    cells = [
        finished(arm, seed, 0.5 + seed / 100 + place * (0.02 + seed / 900))
        for seed in range(10) for place, arm in enumerate(arms)
    ]  # fmt: skip
    spec = comparison(arms=arms, seeds=list(range(10)))
    judged = result(spec, cells)
    page = comparison_markdown(spec, judged)
    for one in judged["comparisons"].values():
        for key in ("ci95_bca", "ci95_unpaired"):
            assert f"{one[key][0]:+.4f} to {one[key][1]:+.4f}" in page, key
        assert f"{one['d_z']:.2f}" in page
    (row,) = [line for line in page.splitlines() if line.startswith("| p, Wilcoxon |")]
    assert row.count("|") == 4


def test_a_broken_pairing_is_only_broken() -> None:
    cells = pairs()
    cells[1] = cells[1].model_copy(update={"certificate": certificate("another")})
    page = comparison_markdown(comparison(), result(comparison(), cells))
    assert "- pairing: broken\n" in page


def test_a_sweep_ranks_its_points_and_keeps_the_failed_last() -> None:
    cells = [
        point(0.1, 0, 0.5), point(0.1, 1, 0.6),
        point(0.2, 0, 0.7), point(0.2, 1, None, error="ValueError: no"),
        point(0.3, 0, None), point(0.3, 1, None),
    ]  # fmt: skip
    rows = [line.split() for line in sweep_table(sweep(), cells).splitlines()]
    assert rows[1:] == [
        ["noise_std=0.2", "0.7000", "1", "failed"],
        ["noise_std=0.1", "0.5500", "0.0707", "2"],
        ["noise_std=0.3", "-", "0", "failed"],
    ]
    least = sweep(objective={"metric": "val/knn_top1", "mode": "min"})
    assert sweep_table(least, cells).splitlines()[1].startswith("noise_std=0.1")


def test_failures_say_why_in_one_line() -> None:
    cells = [point(0.1, 0, 0.5), point(0.2, 0, None, error="ValueError: no\nmore")]
    lines = failures(cells).splitlines()
    assert lines[1].split() == ["noise_std=0.2", "s0", "FAILED", "ValueError:", "no"]
    assert failures(cells[:1]) == ""
