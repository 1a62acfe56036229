from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest

from stoplab_platform.errors import SpecError
from stoplab_platform.ledger import Cell
from stoplab_platform.specs import RunSpec, override, parse
from stoplab_platform.specs.baselines import baseline
from stoplab_sweeps.certificate import certify
from stoplab_trainers.model.jepa import build_model
from stoplab_trainers.pairing import PairingRecord
from support_runs import TINY
from support_studies import certificate, comparison, finished


def block(seed: int, **second: str) -> list[Cell]:
    """Both arms of a seed; the stochastic one's hashes may be replaced."""
    changed = {**certificate(seed), **second}
    return [
        finished("deterministic", seed, 0.5),
        finished("stochastic", seed, 0.5, certificate=changed),
    ]


def test_equal_hashes_in_every_block_pass() -> None:
    found = certify(comparison(), {0: block(0), 1: block(1)})
    assert found["passed"]
    assert found["pairing"] == "paired"
    assert found["blocks_checked"] == 2
    assert set(found["streams"].values()) == {"equal"}
    assert {"init", "samples", "crops", "masks"} <= set(found["streams"])


@pytest.mark.parametrize("stream", ["init", "samples", "crops", "masks"])
def test_a_stream_that_no_override_touches_breaks_the_pairing(stream: str) -> None:
    found = certify(comparison(), {0: block(0), 1: block(1, **{stream: "other"})})
    assert not found["passed"]
    assert found["streams"][stream] == "broken"
    (reason,) = found["reasons"]
    assert "seed 1" in reason
    assert stream in reason


def test_a_file_to_start_from_that_changed_meanwhile() -> None:
    spec = comparison({"model.init_from": "/w.pth"})
    one, two = ({"init_from": sha * 64} for sha in "ab")
    assert certify(spec, {0: started(0, one, one), 1: started(1, one, one)})["passed"]
    inside = certify(spec, {0: started(0, one, two)})
    assert not inside["passed"]
    assert inside["streams"]["init_from"] == "broken"
    between = certify(spec, {0: started(0, one, one), 1: started(1, two, two)})
    assert not between["passed"]
    assert between["streams"]["init_from"] == "broken"
    assert "deterministic began from other weights in some blocks" in between["reasons"][0]


def test_an_arm_without_a_file_to_start_from() -> None:
    spec = comparison(arms={"deterministic": {}, "stochastic": {"model.init_from": "/w.pth"}})
    found = certify(spec, {0: started(0, {}, {"init_from": "a" * 64, "init": "other"})})
    assert found["passed"]
    assert found["streams"]["init"] == "seed-paired"


def started(seed: int, one: dict[str, str], other: dict[str, str]) -> list[Cell]:
    return [
        finished("deterministic", seed, 0.5, certificate={**certificate(seed), **one}),
        finished("stochastic", seed, 0.5, certificate={**certificate(seed), **other}),
    ]


def test_arms_that_change_the_masks_share_their_seed_only() -> None:
    spec = comparison(arms={"some": {}, "more": {"masking.target.count": 4}})
    cells = [
        finished("some", 0, 0.5),
        finished("more", 0, 0.5, certificate={**certificate(0), "masks": "other"}),
    ]
    found = certify(spec, {0: cells})
    assert found["passed"]
    assert found["pairing"] == "seed-paired"
    assert found["streams"]["masks"] == "seed-paired"
    assert found["streams"]["init"] == "equal"
    cells[1] = cells[1].model_copy(update={"certificate": certificate(9)})
    assert not certify(spec, {0: cells})["passed"]


def test_a_third_arm_excuses_no_broken_pair() -> None:
    spec = comparison(arms={"a": {}, "b": {}, "more": {"masking.target.count": 4}})
    cells = [
        finished(arm, 0, 0.5, certificate={**certificate(0), "masks": masks})
        for arm, masks in (("a", "one"), ("b", "two"), ("more", "three"))
    ]
    found = certify(spec, {0: cells})
    assert not found["passed"]
    assert "a one, b two" in found["reasons"][0]
    cells[1] = finished("b", 0, 0.5, certificate={**certificate(0), "masks": "one"})
    found = certify(spec, {0: cells})
    assert found["passed"]
    assert found["streams"]["masks"] == "seed-paired"


EVERY = {"init", "samples", "crops", "masks", "precision", "threads", "device", "data"}


@pytest.mark.parametrize(
    ("override", "streams"),
    [
        ({"positions.covariance": "untied"}, {"init"}),
        ({"positions.kind": "deterministic", "positions.parametrization": "official"}, {"init"}),
        ({"model.init": "published"}, {"init"}),
        ({"optim.lr": 0.01}, set()),
        ({"data.hflip": True}, {"crops"}),
        ({"optim.batch_size": 32}, {"samples", "crops", "masks"}),
        ({"compute.threads": 2}, {"threads"}),
    ],
)
def test_what_an_override_touches(override: dict[str, Any], streams: set[str]) -> None:
    """Where all differs, that is its doing and the rest is broken; records here have no parts."""
    spec = comparison(arms={"a": {}, "b": override})
    cells = [finished(arm, 0, 0.5, certificate=dict.fromkeys(EVERY, arm)) for arm in ("a", "b")]
    found = certify(spec, {0: cells})["streams"]
    assert {name for name, state in found.items() if state == "seed-paired"} == streams
    assert {name for name, state in found.items() if state == "broken"} == EVERY - streams


def test_arms_that_are_fed_the_same_are_pairs_whatever_they_change() -> None:
    spec = comparison(arms={"a": {}, "b": {"masking.target.count": 4, "optim.batch_size": 32}})
    found = certify(spec, {0: [finished(arm, 0, 0.5) for arm in ("a", "b")]})
    assert (found["passed"], found["pairing"]) == (True, "paired")


BROKEN = (False, "broken")
KINDS: list[dict[str, Any]] = [
    {"kind": "deterministic", "parametrization": way} for way in ("stoplab", "official")
] + [
    {"kind": "stochastic", "parametrization": way, "covariance": covariance, "noise_std": noise}
    for way in ("stoplab", "official")
    for covariance in ("learned", "identity", "untied")
    for noise in (0, 0.25)
]


def first_weights(positions: dict[str, Any], **tampered: float) -> dict[str, str]:
    """The record of a real model's first weights; those with a word in their name may be moved."""
    model = build_model(parse(RunSpec, override(TINY, {"positions": positions})))
    weights = model.state_dict()
    for word, by in tampered.items():
        weights = {name: w + by if word in name else w for name, w in weights.items()}
    return {**certificate(0), **{
        key: value for key, value in PairingRecord(weights).certificate().items()
        if key.startswith("init")
    }}  # fmt: skip


def judged(
    one: dict[str, Any], other: dict[str, Any], a: dict[str, str], b: dict[str, str]
) -> tuple[bool, str]:
    """Whether two kinds of positions pass as a pair, and what their first weights are."""
    spec = comparison(arms={"a": {"positions": one}, "b": {"positions": other}})
    cells = [finished(arm, 0, 0.5, certificate=record) for arm, record in (("a", a), ("b", b))]
    found = certify(spec, {0: cells})
    return found["passed"], found["streams"]["init"]


def test_all_kinds_of_positions_start_from_the_same_weights() -> None:
    """Whatever weights of its own one of them has; and a difference in the others is found."""
    records = [first_weights(positions) for positions in KINDS]
    for (one, a), (other, b) in combinations(zip(KINDS, records, strict=True), 2):
        assert judged(one, other, a, b) == (True, "equal"), (one, other)
    learned, identity = KINDS[2], KINDS[4]
    assert judged(learned, identity, records[2], first_weights(identity, encoder=1e-6)) == BROKEN


def test_a_weight_that_both_kinds_of_positions_have_must_agree() -> None:
    token, own = ({"kind": "stochastic", "noise_std": 0.25, "covariance": "untied",
                   "parametrization": way} for way in ("stoplab", "official"))  # fmt: skip
    plain = {"kind": "deterministic", "parametrization": "official"}
    first = first_weights(token)
    assert judged(token, token, first, first_weights(token, mask_token=1e-6)) == BROKEN
    assert judged(token, own, first, first_weights(own, noise=1e-6)) == BROKEN
    moved = first_weights(token, mask_token=1e-6)
    assert judged(plain, token, first_weights(plain), moved) == (True, "equal")  # only it has one


def test_arms_that_are_judged_by_unlike_data_are_refused() -> None:
    def found(*told: str) -> dict[str, Any]:
        cells = [
            finished(arm, 0, 0.5, certificate={**certificate(0), **({"judged": by} if by else {})})
            for arm, by in zip(("deterministic", "stochastic"), told, strict=True)
        ]
        return certify(comparison(), {0: cells})

    assert found("x", "x")["passed"]
    assert "the arms differ in judged" in found("x", "y")["reasons"][0]
    assert found("x", "")["passed"], "a run of an earlier release did not tell"


def test_blocks_that_unlike_versions_judged_are_refused() -> None:
    def found(*told: str) -> dict[str, Any]:
        blocks = {
            seed: [
                finished(
                    arm, seed, 0.5,
                    certificate=certificate(seed) | ({"protocols": version} if version else {}),
                )
                for arm in ("deterministic", "stochastic")
            ]
            for seed, version in enumerate(told)
        }  # fmt: skip
        return certify(comparison(), blocks)

    assert found("knn/3", "knn/3")["passed"]
    apart = found("knn/3", "knn/4", "knn/4")
    assert not apart["passed"]
    assert "(seeds: knn/3 in 0; knn/4 in 1, 2)" in apart["reasons"][0]
    assert not found("", "knn/3")["passed"], "of an earlier release the version is not known"
    assert found("", "")["passed"]


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ({"evals": [{"kind": "knn", "k": 1}]}, "evals"),
        ({"data.eval": {"train": "digits/train", "test": "digits/train"}}, "data.eval"),
    ],
)
def test_arms_cannot_change_how_they_are_judged(override: dict[str, Any], path: str) -> None:
    with pytest.raises(SpecError) as refused:
        comparison(arms={"deterministic": {}, "other": override})
    (problem,) = refused.value.problems
    assert problem.path == ("arms", "other", path)
    assert "arms are judged alike" in problem.message


def test_arms_on_unlike_numbers_of_workers_are_not_refused() -> None:
    spec = comparison(arms={"a": {}, "b": {"compute.workers": 2}})
    cells = [finished(arm, 0, 0.5, certificate={**certificate(0), "crops": arm}) for arm in "ab"]
    found = certify(spec, {0: cells})
    assert found["passed"]
    assert found["streams"] == {
        "init": "equal", "samples": "equal", "masks": "equal", "crops": "seed-paired",
    }  # fmt: skip


def test_another_precision_in_one_block_breaks_the_pairing() -> None:
    cells = block(0, precision="bf16")
    cells[0] = cells[0].model_copy(
        update={"certificate": {**cells[0].certificate, "precision": "fp32"}}
    )
    found = certify(comparison(), {0: cells})
    assert not found["passed"]
    assert "precision" in found["reasons"][0]


def test_a_run_without_a_record_proves_nothing() -> None:
    cells = block(0)
    cells[1] = cells[1].model_copy(update={"certificate": {}})
    found = certify(comparison(), {0: cells})
    assert not found["passed"]
    assert "stochastic left no record" in found["reasons"][0]


def test_no_complete_block_is_no_proof() -> None:
    assert not certify(comparison(), {})["passed"]


@pytest.mark.parametrize(
    ("positions", "name"),
    [
        ({"kind": "deterministic"}, "ijepa"),
        ({"kind": "stochastic", "noise_std": 0}, "ijepa"),
        ({"kind": "stochastic", "noise_std": 0, "parametrization": "official"}, "stop_sigma0"),
        ({"kind": "deterministic", "parametrization": "official"}, "official_off"),
        ({"kind": "stochastic", "noise_std": 0.25}, None),
        ({"kind": "stochastic", "noise_std": 0.25, "parametrization": "official"}, None),
    ],
)
def test_named_baselines(positions: dict[str, Any], name: str | None) -> None:
    assert baseline(parse(RunSpec, override(TINY, {"positions": positions}))) == name
