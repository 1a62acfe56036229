"""Dotted fields laid over a spec, and specs read from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stoplab_platform.errors import SpecError
from stoplab_platform.specs import (
    RunSpec,
    SweepSpec,
    applied,
    load_spec,
    override,
    parse,
    parse_assignments,
)
from stoplab_platform.specs.positions import StochasticPositions
from support_specs import example, small


def problems(base: RunSpec, **changes: Any) -> dict[str, str]:
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    with pytest.raises(SpecError) as refused:
        applied(base, dotted, RunSpec)
    return {problem.dotted: problem.message for problem in refused.value.problems}


@pytest.fixture
def base() -> RunSpec:
    positions = {"kind": "stochastic", "noise_std": 0.5, "covariance": "untied"}
    return parse(RunSpec, small(positions=positions))


class TestAssignments:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("a=1", 1),
            ("a=0.25", 0.25),
            ("a=1e-3", 0.001),
            ("a=8E-4", 0.0008),
            ("a=-1.5e3", -1500.0),
            ("a=[0.15, 0.2]", [0.15, 0.2]),
            ("a={kind: knn}", {"kind": "knn"}),
            ("a=true", True),
            ("a=null", None),
            ("a=", None),
            ("a=text", "text"),
            ("a=x=y", "x=y"),
            ("a=nan", "nan"),
            ("a=infinity", "infinity"),
            ("a='1e-3'", "1e-3"),
        ],
    )
    def test_values_are_yaml_with_exponents_as_numbers(self, text: str, value: Any) -> None:
        assert parse_assignments([text]) == {"a": value}

    def test_all_that_are_none_at_once(self) -> None:
        with pytest.raises(SpecError) as refused:
            parse_assignments(["a=1", "b", "=2"])
        assert len(refused.value.problems) == 2

    def test_what_is_no_yaml(self) -> None:
        with pytest.raises(SpecError, match="not YAML"):
            parse_assignments(["a=[1"])


class TestOverride:
    def test_a_kind_replaces_the_whole_object(self, base: RunSpec) -> None:
        assert applied(base, {"positions.kind": "deterministic"}, RunSpec).plain()["positions"] == {
            "kind": "deterministic",
            "parametrization": "stoplab",
            "table": "fixed",
        }

    def test_also_by_the_same_kind(self, base: RunSpec) -> None:
        again = applied(base, {"positions.kind": "stochastic"}, RunSpec)
        assert again.positions == StochasticPositions(kind="stochastic")

    def test_fields_of_the_new_kind_may_stand_in_any_order(self, base: RunSpec) -> None:
        changes = {"masking.ratio": 0.6, "masking.kind": "random"}
        assert applied(base, changes, RunSpec).plain()["masking"] == {
            "kind": "random", "ratio": 0.6,
        }  # fmt: skip

    def test_one_field_leaves_the_others(self, base: RunSpec) -> None:
        changed = applied(base, {"positions.noise_std": 0.1}, RunSpec)
        assert changed.plain()["positions"] == {**base.plain()["positions"], "noise_std": 0.1}

    def test_lists_by_number_and_as_a_whole(self, base: RunSpec) -> None:
        assert applied(base, {"evals.0.k": 5}, RunSpec).plain()["evals"][0]["k"] == 5
        assert applied(base, {"evals.1.kind": "location"}, RunSpec).plain()["evals"][1] == {
            "kind": "location", "every_epochs": None, "label": None, "block": None,
        }  # fmt: skip
        changed = applied(base, {"masking.target.scale": [0.1, 0.3]}, RunSpec)
        assert changed.plain()["masking"]["target"]["scale"] == [0.1, 0.3]
        assert changed.plain()["masking"]["target"]["count"] == 4

    def test_an_object_that_was_null(self, base: RunSpec) -> None:
        changes = {"data.eval.train": "a", "data.eval.test": "b"}
        evals = applied(base, changes, RunSpec).data.eval
        assert evals is not None
        assert evals.test == "b"

    def test_keys_that_hold_dots_are_found_whole(self) -> None:
        sweep = {"space": {"positions.noise_std": {"grid": [0.1]}}}
        assert override(sweep, {"space.positions.noise_std.grid": [0.2]}) == {
            "space": {"positions.noise_std": {"grid": [0.2]}}
        }
        arms = {"arms": {"a": {"positions.kind": "deterministic", "optim.lr": 1}}}
        changes = {"arms.a.positions.kind": "stochastic", "arms.a.optim.lr": 2}
        assert override(arms, changes) == {
            "arms": {"a": {"positions.kind": "stochastic", "optim.lr": 2}}
        }

    def test_the_base_stays_as_it_was(self) -> None:
        data = {"a": {"b": [1, 2]}}
        assert override(data, {"a.b": [3], "c.d": 1}) == {"a": {"b": [3]}, "c": {"d": 1}}
        assert data == {"a": {"b": [1, 2]}}

    def test_unknown_fields_are_named(self, base: RunSpec) -> None:
        assert problems(base, positions__noise=1) == {"positions.noise": "unknown field"}
        assert problems(base, nothing__here=1) == {"nothing": "unknown field"}
        assert problems(base, seed__x=1) == {"seed.x": "no such field"}
        assert problems(base, seed__x__y=1).keys() == {"seed.x"}
        assert problems(base, evals__7__k=1).keys() == {"evals.7"}
        assert problems(base, evals__7=1).keys() == {"evals.7"}

    def test_values_are_checked(self, base: RunSpec) -> None:
        assert problems(base, positions__noise_std=-1, optim__epochs=0).keys() == {
            "positions.noise_std", "optim.epochs",
        }  # fmt: skip

    def test_a_field_of_the_other_kind(self, base: RunSpec) -> None:
        found = problems(base, positions__kind="deterministic", positions__noise_std=0.1)
        assert found == {"positions.noise_std": "unknown field"}


class TestFiles:
    def test_overrides_are_laid_over_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(small(seed=3)))
        spec = load_spec(path, {"seed": 4, "positions.kind": "deterministic"})
        assert isinstance(spec, RunSpec)
        assert (spec.seed, spec.positions.kind) == (4, "deterministic")

    def test_a_base_may_be_a_path_beside_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "runs").mkdir()
        (tmp_path / "sweeps").mkdir()
        (tmp_path / "runs" / "base.yaml").write_text(yaml.safe_dump(small(seed=3)))
        path = tmp_path / "sweeps" / "sweep.yaml"
        path.write_text(yaml.safe_dump(example("sweep", base="../runs/base.yaml")))
        spec = load_spec(path, {"base.optim.epochs": 20})
        assert isinstance(spec, SweepSpec)
        assert (spec.base.seed, spec.base.optim.epochs) == (3, 20)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            (None, "cannot be read"),
            ("a: [", "is not YAML"),
            ("- 1", "holds list"),
            ("kind: sweep\nbase: gone.yaml", "gone.yaml cannot be read"),
        ],
    )
    def test_a_file_that_is_none(self, tmp_path: Path, text: str | None, says: str) -> None:
        path = tmp_path / "spec.yaml"
        if text is not None:
            path.write_text(text)
        with pytest.raises(SpecError, match=says):
            load_spec(path)
