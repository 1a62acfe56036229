"""A study's spec with more in it: what may be added, and what may not."""

from __future__ import annotations

from typing import Any

import pytest

from stoplab_platform.errors import SpecError
from stoplab_platform.extend import extended
from stoplab_platform.specs import ComparisonSpec, SweepSpec, parse_spec
from support_specs import example

NOISE = "positions.noise_std"


def sweep(**changes: Any) -> SweepSpec:
    space = {NOISE: {"grid": [0.1, 0.2]}, "masking_ratio": {"grid": [0.6]}}
    spec = parse_spec(example("sweep", **{"search": {"kind": "grid"}, "space": space, **changes}))
    assert isinstance(spec, SweepSpec)
    return spec


def comparison() -> ComparisonSpec:
    spec = parse_spec(example("compare", seeds=[0, 1]))
    assert isinstance(spec, ComparisonSpec)
    return spec


def problems_of(spec: Any, additions: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(SpecError) as refused:
        extended(spec, additions)
    return {problem.dotted: problem.message for problem in refused.value.problems}


def test_seeds_are_added_and_arms_keep_their_order() -> None:
    more = extended(comparison(), {"seeds": [7, 3], "limits": {"trials": 8}})
    assert isinstance(more, ComparisonSpec)
    assert more.seeds == (0, 1, 7, 3)
    assert list(more.arms) == ["deterministic", "stochastic"]
    assert more.limits.trials == 8
    assert more.digest() != comparison().digest()


def test_seeds_are_added_beyond_the_last_look() -> None:
    """One of the planned blocks may be lost for good."""
    primary = {"looks": [2, 3]}
    spec = parse_spec(example("compare", seeds=[0, 1, 2], primary=primary))
    more = extended(spec, {"seeds": [3]})
    assert isinstance(more, ComparisonSpec)
    assert more.seeds == (0, 1, 2, 3)


def test_values_and_replicates_are_added_to_a_grid() -> None:
    more = extended(sweep(), {"space": {NOISE: {"grid": [0.4]}}, "replicates": 2})
    assert isinstance(more, SweepSpec)
    assert more.space[NOISE].grid == (0.1, 0.2, 0.4)
    assert more.space["masking_ratio"].grid == (0.6,)
    assert more.replicates == 2


def test_a_drawn_sweep_gets_more_samples() -> None:
    space = {NOISE: {"uniform": [0.0, 1.0]}}
    drawn = sweep(space=space, search={"kind": "random", "samples": 3})
    more = extended(drawn, {"search": {"samples": 5}})
    assert isinstance(more, SweepSpec)
    assert more.search.samples == 5
    assert (
        "raise search.samples"
        in problems_of(drawn, {"space": {NOISE: {"grid": [1]}}})[f"space.{NOISE}"]
    )
    assert "give more" in problems_of(drawn, {"search": {"samples": 3}})["search.samples"]


@pytest.mark.parametrize("additions", [{}, {"limits": {"trials": 9}}, {"space": {}}])
def test_nothing_added_is_no_extension(additions: dict[str, Any]) -> None:
    assert "nothing is added" in problems_of(sweep(), additions)["space"]


def test_all_mistakes_are_told_at_once() -> None:
    additions = {
        "space": {
            NOISE: {"grid": [0.1, 0.3]},
            "seed": {"grid": [1]},
            "masking_ratio": {"choice": [1]},
        },
        "replicates": 1,
    }
    found = problems_of(sweep(), additions)
    assert "[0.1] are in the study already" in found[f"space.{NOISE}.grid"]
    assert "no axis" in found["space.seed"]
    assert "is a grid" in found["space.masking_ratio"]
    assert "give more" in found["replicates"]


def test_each_kind_has_its_own_additions() -> None:
    assert "sweep job" in problems_of(sweep(), {"seeds": [4]})["seeds"]
    assert "compare job" in problems_of(comparison(), {"replicates": 4})["replicates"]
    assert "[1] are in" in problems_of(comparison(), {"seeds": [1, 2]})["seeds"]
    assert (
        "cannot be extended" in problems_of(parse_spec(example("pretrain")), {"seeds": [1]})["kind"]
    )


def test_what_is_added_must_fit_its_field() -> None:
    assert f"space.{NOISE}" in problems_of(sweep(), {"space": {NOISE: {"grid": ["much"]}}})
    assert "limits.trials" in problems_of(sweep(), {"replicates": 2, "limits": {"trials": 0}})
