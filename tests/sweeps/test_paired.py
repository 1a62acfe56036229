from __future__ import annotations

import itertools
import json
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW, ttost_paired

from stoplab_sweeps.paired import difference, holm, verdict
from stoplab_sweeps.power import more_blocks, power

CLOSE = 1e-9


def draws(n: int, gap: float, seed: int = 0) -> tuple[list[float], list[float]]:
    generator = np.random.default_rng(seed)
    block = generator.normal(0.7, 0.05, n)
    other = block + gap + generator.normal(0, 0.01, n)
    return block.tolist(), other.tolist()


RIGHT = [411, 398, 420, 405, 417, 401, 409, 412, 396, 407, 415, 403]
MORE = [9, 4, -2, 11, 0, 9, 7, -3, 12, 5, 4, 8]
TABLES = {
    "two": draws(2, 0.01),
    "five": draws(5, 0.02),
    "twelve": draws(12, -0.004),
    "thirty": draws(30, 0.0),
    "fractions with ties": (
        [r / 540 for r in RIGHT],
        [(r + m) / 540 for r, m in zip(RIGHT, MORE, strict=True)],
    ),
    "percent": ([71.2, 69.9, 70.4, 70.8], [72.0, 70.3, 70.2, 71.9]),
    "small numbers": ([3.1e-7, 2.9e-7, 3.4e-7], [3.3e-7, 3.0e-7, 3.9e-7]),
}


@pytest.mark.parametrize("name", TABLES)
def test_numbers_are_those_of_scipy_and_statsmodels(name: str) -> None:
    a, b = TABLES[name]
    deltas, margin = np.subtract(b, a), 0.8 * float(np.std(np.subtract(b, a)))
    found = difference(a, b, min_effect=margin)
    paired = stats.ttest_rel(b, a)

    assert found.delta == pytest.approx(deltas.mean(), abs=CLOSE)
    assert found.ci95 == pytest.approx(tuple(paired.confidence_interval(0.95)), abs=CLOSE)
    assert found.p_t == pytest.approx(paired.pvalue, abs=CLOSE)
    ranked = np.array(MORE) if "ties" in name else deltas  # whole numbers: ties without noise
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(ranked).pvalue, abs=CLOSE)
    assert found.d_z == pytest.approx(deltas.mean() / deltas.std(ddof=1), abs=CLOSE)
    welch = stats.ttest_ind(b, a, equal_var=False).confidence_interval(0.95)
    assert found.ci95_unpaired == pytest.approx(tuple(welch), abs=CLOSE)
    means = CompareMeans(DescrStatsW(b), DescrStatsW(a)).tconfint_diff(usevar="unequal")
    assert found.ci95_unpaired == pytest.approx(means, abs=CLOSE)
    tost = ttost_paired(np.array(b), np.array(a), -margin, margin)[0]
    assert found.tost_p == pytest.approx(tost, abs=CLOSE)
    wins = (ranked > 0).mean() + (ranked == 0).mean() / 2
    assert found.prob_superior == pytest.approx(wins, abs=CLOSE)


@pytest.mark.parametrize("name", [name for name in TABLES if name != "thirty"])
def test_sign_flips_are_scipys_exact_permutations(name: str) -> None:
    a, b = TABLES[name]
    theirs = stats.permutation_test(
        (np.array(b), np.array(a)),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    found = difference(a, b, min_effect=0.005).p_sign_flip
    assert found == pytest.approx(theirs.pvalue, abs=CLOSE)


@pytest.mark.parametrize("n", [2, 5, 12])
def test_sign_flips_are_exact_for_few_blocks(n: int) -> None:
    a, b = draws(n, 0.004, seed=n)
    deltas = np.subtract(b, a)
    signs = np.array(list(itertools.product((1, -1), repeat=n)))
    means = np.abs((signs * deltas).mean(axis=1))
    by_hand = (means >= abs(deltas.mean()) - 1e-12).mean()
    found = difference(a, b, min_effect=0.005).p_sign_flip
    assert found == pytest.approx(by_hand, abs=CLOSE)


def of_counts(right: np.ndarray, other: np.ndarray, out_of: int) -> float | None:
    a, b = (right / out_of).tolist(), (other / out_of).tolist()
    return difference(a, b, min_effect=0.005).p_sign_flip


def test_sign_flips_of_accuracies_are_exact_where_sums_are_equal() -> None:
    """Counts of images hold equal sums by the dozen; as fractions they differ by rounding."""
    gaps = np.array([66, 24, -90, -46])
    assert of_counts(np.full(4, 7000), 7000 + gaps, 10_000) == 0.875
    draws = np.random.default_rng(0)
    for _ in range(300):
        n, out_of = int(draws.integers(4, 11)), int(draws.choice([100, 540, 10_000, 1_000_000]))
        right, other = draws.binomial(out_of, 0.7, n), draws.binomial(out_of, 0.7005, n)
        signs = np.array(list(itertools.product((1, -1), repeat=n)))
        gaps = other - right
        exact = (np.abs(signs @ gaps) >= abs(gaps.sum())).mean()
        assert of_counts(right, other, out_of) == pytest.approx(exact, abs=CLOSE), (gaps, out_of)


def test_many_blocks_fit_into_memory() -> None:
    """All resamples of 2,000 blocks at once would be more than a gigabyte."""
    a, b = draws(2_000, 0.0005)
    tracemalloc.start()
    found = difference(a, b, min_effect=0.005)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.p_sign_flip is not None
    assert found.ci95_bca is not None
    assert most < 200e6


def test_sign_flips_are_sampled_beyond_and_repeat() -> None:
    a, b = draws(25, 0.004)
    first, second = (difference(a, b, min_effect=0.005).p_sign_flip for _ in range(2))
    assert first == second
    assert first is not None
    t = stats.ttest_rel(b, a).pvalue
    assert first == pytest.approx(t, abs=0.02)


def test_bca_needs_ten_blocks_and_agrees_with_scipy() -> None:
    assert difference(*draws(9, 0.01), min_effect=0.005).ci95_bca is None
    a, b = draws(10, 0.01)
    found = difference(a, b, min_effect=0.005).ci95_bca
    theirs = stats.bootstrap(
        (np.subtract(b, a),), np.mean, rng=np.random.default_rng(0)
    ).confidence_interval
    assert found == pytest.approx(tuple(theirs), abs=CLOSE)


@pytest.mark.parametrize(
    ("interval", "word"),
    [
        ((0.001, 0.03), "better"),
        ((-0.03, -0.001), "worse"),
        ((-0.004, 0.005), "equivalent"),
        ((0.0, 0.004), "equivalent"),
        ((-0.004, 0.006), "inconclusive"),
        ((0.001, 0.002), "better"),
        (None, "inconclusive"),
    ],
)
def test_the_interval_and_min_effect_alone_decide(
    interval: tuple[float, float] | None, word: str
) -> None:
    assert verdict(interval, 0.005) == word


def test_alpha_decides_and_ci95_stays_95() -> None:
    a, b = [0.70, 0.71, 0.72, 0.69], [0.72, 0.722, 0.71, 0.73]
    strict = difference(a, b, min_effect=0.001, alpha=0.01)
    loose = difference(a, b, min_effect=0.001, alpha=0.4)
    assert strict.ci95 == loose.ci95
    assert (strict.verdict, loose.verdict) == ("inconclusive", "better")
    assert loose.ci_alpha == pytest.approx(
        tuple(stats.ttest_rel(b, a).confidence_interval(0.6)), abs=CLOSE
    )


def test_equal_arms_are_equivalent() -> None:
    found = difference([0.7, 0.71, 0.72], [0.7, 0.71, 0.72], min_effect=0.005)
    assert (found.delta, found.ci95, found.verdict) == (0, (0, 0), "equivalent")
    assert (found.p_t, found.p_sign_flip, found.p_wilcoxon, found.tost_p) == (1, 1, 1, 0)
    assert found.d_z is None
    assert found.prob_superior == 0.5


def test_equal_differences_make_a_point_of_the_interval() -> None:
    found = difference([0.7, 0.71, 0.72], [0.71, 0.72, 0.73], min_effect=0.005)
    assert found.ci95 == pytest.approx((0.01, 0.01))
    assert (found.verdict, found.p_t, found.d_z, found.tost_p) == ("better", 0, None, 1)
    assert found.p_sign_flip == 0.25  # the test without a bell curve stays modest
    assert found.more_seeds_for_80_power == 0


def test_a_block_of_large_values_hides_no_other() -> None:
    a, b = draws(11, 0.05)
    a, b = [*a, 3e11], [*b, 6e11]
    deltas = np.subtract(b, a)
    found = difference(a, b, min_effect=0.005)
    assert found.prob_superior == 1
    assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(deltas).pvalue, abs=CLOSE)
    assert found.p_sign_flip == pytest.approx(2 / 2**12)


def test_small_values_have_a_spread_too() -> None:
    scale, (a, b) = 1e-14, draws(6, 0.002)
    small = difference([x * scale for x in a], [x * scale for x in b], min_effect=0)
    plain = difference(a, b, min_effect=0)
    assert small.verdict == plain.verdict == "inconclusive"
    for name in ("p_t", "p_sign_flip", "p_wilcoxon", "d_z", "prob_superior"):
        assert getattr(small, name) == pytest.approx(getattr(plain, name), abs=1e-6), name


def test_float_noise_ranks_nothing() -> None:
    a, b = [0.1, 0.3, 0.7, 0.5], [0.2, 0.4, 0.6, 0.6]
    assert len(set(np.subtract(b, a).tolist())) > 2
    exact = stats.wilcoxon([0.1, 0.1, -0.1, 0.1]).pvalue
    assert difference(a, b, min_effect=0.005).p_wilcoxon == exact


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_blocks_give_no_interval(n: int) -> None:
    found = difference([0.7] * n, [0.8] * n, min_effect=0.005)
    assert found.n_blocks == n
    assert found.verdict == "inconclusive"
    nothing = (found.ci95, found.p_t, found.p_sign_flip, found.p_wilcoxon, found.ci95_unpaired)
    assert nothing == (None,) * 5
    assert found.more_seeds_for_80_power is None


def test_missing_values_are_the_callers_matter() -> None:
    with pytest.raises(AssertionError):
        difference([0.7, math.nan], [0.7, 0.8], min_effect=0.005)


@pytest.mark.parametrize("seed", range(5))
def test_more_seeds_are_the_fewest_with_80_percent_power(seed: int) -> None:
    a, b = draws(4, 0.004, seed)
    deltas = np.subtract(b, a)
    more = more_blocks(deltas, min_effect=0.005, alpha=0.05)
    assert more is not None
    size = max(abs(deltas.mean()), 0.005) / deltas.std(ddof=1)
    power = TTestPower()
    assert power.power(size, 4 + more, 0.05) >= 0.8
    if more:
        assert power.power(size, 4 + more - 1, 0.05) < 0.8


@pytest.mark.parametrize("d_z", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("n", [2, 5, 12, 60])
def test_power_is_that_of_statsmodels(d_z: float, n: int) -> None:
    assert power(d_z, n, 0.05) == pytest.approx(TTestPower().power(d_z, n, 0.05), abs=CLOSE)


def test_power_is_a_number_where_statsmodels_has_none() -> None:
    assert not math.isfinite(TTestPower().power(2.5, 60, 0.05))
    assert power(2.5, 60, 0.05) == pytest.approx(1.0)


def test_more_seeds_without_anything_to_find() -> None:
    deltas = np.array([0.01, -0.01])
    assert more_blocks(deltas, min_effect=0, alpha=0.05) is None
    assert more_blocks(np.array([1.0, -1.0]), min_effect=1e-9, alpha=0.05) is None


def test_holm_leaves_out_what_has_no_p() -> None:
    mine = holm([0.01, None, 0.04, 0.03])
    theirs = multipletests([0.01, 0.04, 0.03], method="holm")[1]
    assert mine == [theirs[0], None, theirs[1], theirs[2]]
    assert holm([None]) == [None]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 540), min_size=2, max_size=6),
    st.lists(st.integers(0, 540), min_size=6, max_size=6),
)
def test_json_never_holds_nan(a: list[int], b: list[int]) -> None:
    found = difference([x / 540 for x in a], [x / 540 for x in b[: len(a)]], min_effect=0.005)
    json.dumps(vars(found), allow_nan=False)
    assert found.ci95 is not None
    assert found.delta is not None
    assert found.ci95[0] <= found.delta <= found.ci95[1]
