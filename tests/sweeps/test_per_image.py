from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from stoplab_platform.files import read_json, write_json
from stoplab_sweeps.compare import result
from stoplab_sweeps.per_image import Told, per_image, read_right
from stoplab_sweeps.study import run_study
from support_studies import Runs, comparison, finished, one_by_one, start

N = 400


def told(seeds: int = 3, *, lift: float = 0.1, seed_sd: float = 0.0) -> Told:
    """Arms that are right by an image's own ease; the second one more often."""
    generator = np.random.default_rng(0)
    ease = generator.uniform(0.3, 0.9, N)
    found = {}
    for seed in range(seeds):
        shift = lift + generator.normal(0, seed_sd) if seed_sd else lift
        found[seed] = {
            "off": generator.uniform(size=N) < ease,
            "on": generator.uniform(size=N) < ease + shift,
        }
    return found


def test_a_block_is_mcnemars_table() -> None:
    right = told()
    found = per_image(right, ("off", "on"))
    assert found is not None
    for seed, row in right.items():
        table = np.zeros((2, 2))
        for a, b in zip(row["off"], row["on"], strict=True):
            table[int(a), int(b)] += 1
        theirs = mcnemar(table, exact=True)
        assert found["arms"]["on"][seed] == {
            "seed": seed, "only_reference": table[1, 0], "only_other": table[0, 1],
            "p_mcnemar": pytest.approx(theirs.pvalue, abs=1e-12), "n_images": N,
        }  # fmt: skip
    json.dumps(found, allow_nan=False)


def test_test_set_noise_is_what_other_images_would_do() -> None:
    """The error of a block's difference, against drawing other test sets."""
    row = told(1)[0]
    found = per_image({0: row}, ("off", "on"))
    assert found is not None
    gaps = row["on"].astype(int) - row["off"].astype(int)
    draws = np.random.default_rng(1).choice(gaps, (20_000, N)).mean(axis=1)
    assert found["test_set_se"] == pytest.approx(draws.std(), rel=0.02)
    # Of discordant images alone: (b + c) / n - ((c - b) / n)^2, over n.
    b, c = (gaps < 0).sum(), (gaps > 0).sum()
    by_hand = math.sqrt(((b + c) / N - ((c - b) / N) ** 2) / (N - 1))
    assert found["test_set_se"] == pytest.approx(by_hand)
    assert found["mean_test_set_se"] == pytest.approx(by_hand)
    assert (found["seed_sd"], found["note"]) == (None, None)


def test_seed_noise_is_told_from_test_set_noise() -> None:
    calm, wild = (per_image(told(12, seed_sd=sd), ("off", "on")) for sd in (0.0, 0.15))
    assert calm is not None
    assert wild is not None
    assert wild["seed_sd"] > 2 * calm["seed_sd"]
    assert wild["test_set_se"] == pytest.approx(calm["test_set_se"], rel=0.15)
    # Twelve independent draws on each image: their mean leaves less to chance than one.
    assert calm["mean_test_set_se"] < 0.5 * calm["test_set_se"]
    assert f"{wild['seed_sd']:.4f}" in wild["note"]


def test_arms_that_agree_leave_nothing_to_test() -> None:
    same = np.ones(10, dtype=bool)
    found = per_image({0: {"a": same, "b": same}}, ("a", "b"))
    assert found is not None
    assert found["arms"]["b"][0]["p_mcnemar"] == 1
    assert found["test_set_se"] == 0


def test_blocks_without_both_arms_on_the_same_images_are_left_out() -> None:
    right = np.ones(5, dtype=bool)
    found = per_image(
        {0: {"a": right, "b": right}, 1: {"a": right}, 2: {"a": right, "b": right[:3]}},
        ("a", "b", "c"),
    )
    assert found is not None
    assert [block["seed"] for block in found["arms"]["b"]] == [0]
    assert found["arms"]["c"] == []
    assert found["noise"]["c"]["test_set_se"] is None
    assert per_image({0: {"a": right}}, ("a", "b")) is None
    assert per_image({}, ("a", "b")) is None


def test_a_result_holds_it() -> None:
    cells = [finished(arm, s, 0.5) for s in (0, 1) for arm in ("deterministic", "stochastic")]
    assert result(comparison(seeds=[0, 1]), cells)["per_image"] is None
    right = {
        seed: {"deterministic": row["off"], "stochastic": row["on"]}
        for seed, row in told(2).items()
    }
    found = result(comparison(seeds=[0, 1]), cells, told=right)["per_image"]
    assert len(found["arms"]["stochastic"]) == 2


def test_a_study_reads_what_its_runs_told() -> None:
    """From the runs' files to comparison.json; a metric without predictions gives none."""
    folder = start().folder
    classes = {"deterministic": [0, 0, 2, 3], "stochastic": [0, 1, 2, 0]}
    for arm, told_classes in classes.items():
        run = folder.run(f"{arm}-s0")
        run.root.mkdir(parents=True)
        write_json(run.predictions, {"labels": [0, 1, 2, 3], "test/knn_top1": told_classes})
    spec = comparison(seeds=[0, 1])
    run_study(spec, start(), schedule=one_by_one, execute=Runs())
    (block,) = read_json(folder.comparison)["per_image"]["arms"]["stochastic"]
    assert (block["only_reference"], block["only_other"], block["n_images"]) == (1, 1, 4)
    cells: list[Any] = [finished("stochastic", 0, 0.5)]
    right = read_right(folder, cells, "test/knn_top1")[0]["stochastic"]
    assert right.tolist() == [True, True, True, False]
    assert read_right(folder, cells, "test/location_r2") == {}


def test_arms_that_were_held_against_unlike_labels_are_left_out() -> None:
    folder = start().folder
    labels = {"deterministic-s0": [0, 1], "stochastic-s0": [0, 1], "deterministic-s1": [0, 1],
              "stochastic-s1": [1, 0]}  # fmt: skip
    for name, true in labels.items():
        folder.run(name).root.mkdir(parents=True)
        write_json(folder.run(name).predictions, {"labels": true, "test/knn_top1": [0, 0]})
    cells = [finished(arm, s, 0.5) for s in (0, 1) for arm in ("deterministic", "stochastic")]
    assert set(read_right(folder, cells, "test/knn_top1")) == {0}
