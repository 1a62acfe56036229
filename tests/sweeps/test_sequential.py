from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import stats

from stoplab_platform.errors import SpecError
from stoplab_platform.specs.comparison import Spending
from stoplab_sweeps import cells
from stoplab_sweeps.compare import compare, result
from stoplab_sweeps.paired import difference
from stoplab_sweeps.sequential import levels, spent
from stoplab_sweeps.wording import sentence, warnings
from support_studies import comparison, finished

LOOKS = (3, 5, 8)
SPENDINGS: tuple[Spending, ...] = ("obrien_fleming", "pocock")


def table(n: int, gap: float = 0.05) -> dict[int, dict[str, float | None]]:
    noise = np.random.default_rng(1).normal(0, 0.002, 12)
    return {i: {"a": 0.5 + i / 100, "b": 0.5 + i / 100 + gap + noise[i]} for i in range(n)}


def judge(n: int, gap: float = 0.05, **of: Any) -> dict[str, Any]:
    return compare(table(n, gap), ("a", "b"), metric="m", min_effect=0.0001, looks=LOOKS, **of)


@pytest.mark.parametrize(
    ("spending", "published"),
    [
        ("obrien_fleming", (4.8769, 3.3569, 2.6803, 2.2898, 2.0310)),
        ("pocock", (2.4380, 2.4268, 2.4101, 2.3966, 2.3859)),
    ],
)
def test_many_blocks_come_to_the_published_normal_boundaries(
    spending: Spending, published: tuple[float, ...]
) -> None:
    """Five equal looks at 0.05, by Lan and DeMets' own program (Reboussin et al. 2000)."""
    found = [stats.norm.isf(level / 2) for level in levels((20, 40, 60, 80, 100), spending)]
    assert found == pytest.approx(published, abs=0.03)
    assert found[0] == pytest.approx(published[0], abs=1e-4)


@pytest.mark.parametrize("spending", SPENDINGS)
def test_all_looks_together_spend_alpha(spending: Spending) -> None:
    assert spent(1, spending, 0.05) == pytest.approx(0.05)
    assert spent(0, spending, 0.05) == 0
    shares = [spent(n / 8, spending, 0.05) for n in range(9)]
    assert all(low < high for low, high in pairwise(shares))
    found = levels(LOOKS, spending, 0.05)
    assert found[0] == pytest.approx(spent(3 / 8, spending, 0.05))
    # More than what is left at each look (who stopped cannot err again), less than all of it.
    assert all(
        spent(b / 8, spending, 0.05) - spent(a / 8, spending, 0.05)
        < level < spent(b / 8, spending, 0.05)
        for level, (a, b) in zip(found[1:], pairwise(LOOKS), strict=True)
    )  # fmt: skip
    assert levels((7,), spending, 0.1) == pytest.approx((0.1,))


def test_two_looks_by_hand() -> None:
    """Two blocks, then three: the second level against an integral over the sphere."""
    first, second = levels((2, 3), "pocock")
    grid = np.linspace(-1, 1, 2001)
    height = (grid[1:] + grid[:-1]) / 2  # of points of a sphere: evenly spread (Archimedes)
    turn = (np.arange(2000) + 0.5) * (2 * np.pi / 2000)
    x = np.sqrt(1 - height[:, None] ** 2) * np.cos(turn)
    y = np.sqrt(1 - height[:, None] ** 2) * np.sin(turn)
    z = height[:, None]
    early = np.abs(x + y) / np.abs(x - y) > stats.t.isf(first / 2, 1)
    mean = (x + y + z) / 3
    t = np.sqrt(3) * mean / np.sqrt((1 - 3 * mean**2) / 2)
    late = np.abs(t) > stats.t.isf(second / 2, 2)
    assert early.mean() == pytest.approx(spent(2 / 3, "pocock", 0.05), abs=2e-4)
    assert (early | late).mean() == pytest.approx(0.05, abs=5e-4)


THIN = [
    (2, 4, 6, 8, 10, 50), (3, 6, 9, 12, 15, 50), (3, 6, 9, 12, 15, 100), (5, 6, 7, 8, 9, 50),
    (5, 7, 9, 11, 13, 100),
]  # fmt: skip


@pytest.mark.parametrize("looks", [(2, 3, 4, 5), (2, 60), (6,), *THIN])
@pytest.mark.parametrize("spending", SPENDINGS)
def test_levels_are_numbers_for_odd_plans(looks: tuple[int, ...], spending: Spending) -> None:
    found = levels(looks, spending)
    assert all(0 < level <= 0.05 for level in found)
    spends = np.diff([0, *(spent(n / looks[-1], spending, 0.05) for n in looks)])
    assert all(level >= wanted * (1 - 1e-9) for level, wanted in zip(found, spends, strict=True))


def test_levels_are_known_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(cells, "levels", lambda *plan: asked.append(plan))
    primary = {"metric": "test/knn_top1", "looks": [2, 4], "spending": "pocock"}
    cells.plan(comparison(primary=primary, seeds=[0, 1, 2]))
    assert asked == [((2, 4), "pocock", 0.05)]


def test_a_level_of_nothing_decides_nothing() -> None:
    assert spent(2 / 4000, "obrien_fleming", 0.05) == 0  # smaller than every float
    found = difference([0.5, 0.51], [0.6, 0.62], min_effect=0, level=0.0)
    assert (found.ci_alpha, found.verdict) == (None, "inconclusive")


def test_a_look_decides_at_its_own_level() -> None:
    judged = judge(3)
    look = judged["sequential"]
    assert (look["look"], look["final"], look["next"]) == (1, False, 5)
    assert look["looks"] == [3, 5, 8]
    assert (
        look["alpha_spent"]
        == look["alpha_here"]
        == pytest.approx(spent(3 / 8, "obrien_fleming", 0.05))
    )
    a, b = (np.array([row[arm] for row in table(3).values()]) for arm in "ab")
    theirs = stats.ttest_rel(b, a).confidence_interval(1 - look["alpha_here"])
    assert judged["ci_alpha"] == pytest.approx(tuple(theirs))
    assert judged["ci95"] == pytest.approx(tuple(stats.ttest_rel(b, a).confidence_interval(0.95)))
    assert judged["verdict"] == "better"
    assert "look 1 of 3" in sentence(judged)


def test_what_one_look_would_find_an_early_one_does_not() -> None:
    early = judge(3, gap=0.006)
    assert early["ci95"][0] > 0
    assert (early["verdict"], compare(
        table(3, 0.006), ("a", "b"), metric="m", min_effect=0.0001
    )["verdict"]) == ("inconclusive", "better")  # fmt: skip
    assert sentence(early).endswith("the next planned look is at 5 blocks")


def test_between_looks_there_is_no_verdict() -> None:
    judged = judge(4)
    look = judged["sequential"]
    assert (look["look"], look["alpha_here"], look["next"], look["final"]) == (None, None, 5, False)
    assert look["alpha_spent"] == pytest.approx(spent(3 / 8, "obrien_fleming", 0.05))
    assert (judged["verdict"], judged["ci_alpha"]) == ("inconclusive", None)
    assert judged["ci95"] is not None
    assert sentence(judged).endswith("4 blocks; the next planned look is at 5 blocks")
    assert judge(2)["verdict"] == "inconclusive"


def test_the_last_look_is_final() -> None:
    judged = judge(8, gap=0.0001)
    assert judged["sequential"]["final"]
    assert judged["sequential"]["alpha_spent"] == pytest.approx(0.05)
    assert sentence(judged).endswith("that was the last planned look")


def test_looks_before_this_one_are_told_of_every_arm() -> None:
    """And not before there was one."""
    rows = table(5)
    three = {i: {**row, "c": row["b"]} for i, row in rows.items()}
    three[4]["b"] = three[3]["b"] = None

    def told(blocks: dict[int, Any]) -> str:
        judged = compare(blocks, ("a", "b", "c"), metric="m", min_effect=0.001, looks=LOOKS)
        return "; ".join(warnings({**judged, "certificate": None}))

    assert "the looks before this one" in told(three)  # c stands at its second look, b at its first
    assert "the looks before this one" not in told({i: three[i] for i in range(2)})
    assert "the looks before this one" not in told({i: three[i] for i in range(3)})


def test_a_study_reads_its_looks_from_the_spec() -> None:
    primary = {"metric": "test/knn_top1", "looks": [2, 4], "spending": "pocock"}
    done = [
        finished(arm, seed, 0.5 + seed / 50 + gap * (1 + seed / 5))
        for seed in (0, 1, 2)
        for arm, gap in (("deterministic", 0.0), ("stochastic", 0.1))
    ]
    judged = result(comparison(primary=primary, seeds=[0, 1, 2]), done)
    assert judged["sequential"]["spending"] == "pocock"
    assert (judged["sequential"]["look"], judged["verdict"]) == (None, "inconclusive")
    judged = result(comparison(primary=primary, seeds=[0, 1, 2]), done[:4])
    assert judged["sequential"]["look"] == 1
    assert result(comparison(), done)["sequential"] is None


def test_another_seed_stands_in_for_a_block_that_is_lost() -> None:
    """The last look counts whole blocks, in the order of the seeds."""
    spec = comparison(primary={"metric": "test/knn_top1", "looks": [2, 3]}, seeds=[0, 1, 2, 3, 4])
    done = [
        finished(arm, seed, 0.5 + seed / 50 + gap * (1 + seed / 50))
        for seed in (0, 1, 2, 3, 4)
        for arm, gap in (("deterministic", 0.0), ("stochastic", 0.1))
    ]
    lost = [cell for cell in done if cell.id != "stochastic-s1"]
    judged = result(spec, lost[:7])
    assert (judged["n_blocks"], judged["sequential"]["final"]) == (3, True)
    assert judged["verdict"] == "better"
    judged = result(spec, lost)
    assert (judged["n_blocks"], judged["verdict"]) == (3, "better")
    means = [judged["arms"][arm]["mean"] for arm in spec.arms]
    assert means[1] - means[0] == pytest.approx(judged["delta"])
    assert judged["blocks"][4]["values"]["stochastic"] is not None
    assert (
        "the last planned look is at 3 blocks; those after it are left out: 4" in judged["warnings"]
    )


@pytest.mark.parametrize("looks", [[], [1, 4], [4, 4], [5, 3], [4, 501]])
def test_looks_rise_from_two(looks: list[int]) -> None:
    with pytest.raises(SpecError, match="numbers of blocks"):
        comparison(primary={"metric": "test/knn_top1", "looks": looks})


def test_the_chain_of_angles_is_that_of_simulated_studies() -> None:
    """Over 200,000 studies without an effect each look's error is the planned one."""
    looks, generator = (2, 3, 5), np.random.default_rng(3)
    deltas = generator.standard_normal((200_000, looks[-1]))
    stopped = np.zeros(len(deltas), dtype=bool)
    for n, level in zip(looks, levels(looks, "pocock"), strict=True):
        t = stats.ttest_1samp(deltas[:, :n], 0, axis=1).statistic
        stopped |= np.abs(t) > stats.t.isf(level / 2, n - 1)
        wanted = spent(n / looks[-1], "pocock", 0.05)
        assert stopped.mean() == pytest.approx(wanted, abs=4 * math.sqrt(wanted / len(deltas)))
