"""Specs that come with the product are found by their names."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from stoplab_platform.specs import SweepSpec, load_spec
from stoplab_platform.specs.ready import ready_spec
from support_specs import example

HOUSE = Path(__file__).parents[2]
SWEEP = {
    "kind": "sweep", "name": "s", "base": "digits.yaml", "space": {"seed": {"grid": [0, 1]}},
}  # fmt: skip


def test_a_base_is_found_by_its_name(tmp_path: Path) -> None:
    """As it must be in a wheel, where no path leads from the ready sweeps to their bases."""
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(SWEEP))
    ready = load_spec(path)
    assert isinstance(ready, SweepSpec)
    assert ready.base.data.train == "digits"
    mine = {**example("pretrain"), "name": "mine", "evals": [{"kind": "knn"}]}
    (tmp_path / "digits.yaml").write_text(yaml.safe_dump(mine))
    beside = load_spec(path)
    assert isinstance(beside, SweepSpec)
    assert beside.base.name == "mine"


@pytest.mark.parametrize("wing", ["trainers", "sweeps"])
def test_all_of_them_by_name_alone(wing: str) -> None:
    folder = HOUSE / wing / "configs"
    names = [str(path.relative_to(folder)) for path in folder.rglob("*.yaml")]
    assert names
    for name in names:
        assert ready_spec(name) == folder / name
        assert load_spec(Path(name)).name


@pytest.mark.parametrize("name", ["none.yaml", "../configs/digits.yaml", "/etc/hosts", "."])
def test_others_are_none(name: str) -> None:
    assert ready_spec(name) is None
