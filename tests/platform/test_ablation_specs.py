"""What the ablations and other objectives say in a spec, and what of it does not go together."""

from __future__ import annotations

from typing import Any

import pytest

from stoplab_platform.specs import RunSpec, applied, parse_spec
from support_specs import problems, run, small


def test_mae_predicts_all_that_is_masked() -> None:
    assert problems(small(objective="mae")).keys() == {"masking"}
    assert run(objective="mae", masking={"kind": "random"}).objective.kind == "mae"


def test_an_objective_without_options_is_a_text() -> None:
    whole = run(objective={"kind": "mae"}, masking={"kind": "random"})
    assert run(objective="mae", masking={"kind": "random"}).digest() == whole.digest()
    assert run(objective="ijepa").digest() == run().digest()
    assert (whole.plain()["objective"], run().plain()["objective"]) == ("mae", "ijepa")
    assert parse_spec(whole.plain()) == whole
    pooled = applied(run(), {"objective.target_pool": "max"}, RunSpec)
    assert pooled.plain()["objective"] == {"kind": "ijepa", "target_pool": "max"}
    assert applied(pooled, {"objective": "ijepa"}, RunSpec) == run()
    assert problems(small(objective=5)).keys() == {"objective"}
    (message,) = problems(small(objective="pixels")).values()
    assert "'pixels' is none of 'ijepa', 'mae'" in message


def test_a_learned_table_goes_without_noise() -> None:
    learned = {"kind": "deterministic", "table": "learned"}
    assert run(positions=learned).positions.table == "learned"
    (message,) = problems(small(positions={"table": "learned"})).values()
    assert "drowns the noise" in message


def test_half_the_resolution_needs_an_even_grid() -> None:
    pooled = {"kind": "ijepa", "target_pool": "max"}
    assert run(objective=pooled).grid == 14
    odd = small(objective=pooled, data={"train": "digits", "image_size": 240})
    assert problems(odd).keys() == {"objective.target_pool"}


def test_a_penalty_has_a_norm_and_a_weight() -> None:
    assert problems(small(optim={"a_penalty": {"norm": "l3"}})).keys() == {
        "optim.a_penalty.norm", "optim.a_penalty.weight",
    }  # fmt: skip


def test_nothing_is_frozen_after_the_end() -> None:
    found = problems(small(optim={"epochs": 20, "freeze_after_epoch": 21}))
    assert found.keys() == {"optim.freeze_after_epoch"}


def test_a_kind_that_is_unknown_is_the_only_mistake_in_its_object() -> None:
    found = problems(small(positions={"kind": "spiral", "turns": 3}, seed=-1))
    assert found.keys() == {"positions.kind", "seed"}
    assert found["positions.kind"] == (
        "'spiral' is none of 'deterministic', 'stochastic'; "
        "plug-ins for positions installed here: none"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": {"kind": "deterministic", "table": "learned"}},
        {"objective": {"kind": "ijepa", "target_pool": "max"}},
        {"objective": "mae", "masking": {"kind": "random"}},
        {"optim": {"a_penalty": {"norm": "l1", "weight": 1e-4}}},
        {"optim": {"freeze_after_epoch": 250}},
    ],
)
def test_each_is_another_run(changes: dict[str, Any]) -> None:
    spec = run(**changes)
    assert spec.run_digest({}) != run().run_digest({})
    assert parse_spec(spec.plain()) == spec
    assert parse_spec(spec.plain(defaults=False)) == spec
