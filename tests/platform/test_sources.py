"""What a spec reads of other jobs."""

from __future__ import annotations

import re
from typing import Any

import pytest

from stoplab_platform.errors import SpecError
from stoplab_platform.sources import named_jobs, reads
from stoplab_platform.specs import RunSpec, parse_spec
from support_store import run_spec

PATH = "/lab/jobs/j_1/runs/run/checkpoints/step-00000005"


@pytest.mark.parametrize(
    ("spec", "jobs"),
    [
        ({"checkpoint": {"job": "j_1"}}, ["j_1"]),
        ({"model": {"init_from": {"job": "j_1", "path": None}}}, ["j_1"]),
        ({"base": {"model": {"init_from": {"job": "j_1"}}}}, ["j_1"]),
        ({"arms": {"a": {"model.init_from": {"job": "j_1"}}}}, ["j_1"]),
        ({"arms": {"a": {"model.init_from.job": "j_1"}, "b": {}}}, ["j_1"]),
        ({"space": {"model.init_from": {"choice": [{"job": "j_1"}, {"job": "j_2"}]}}},
         ["j_1", "j_2"]),
        ({"model": {"init_from": PATH}}, []),
        ({"name": "j_1", "tracking": {"tags": {"job": "j_1"}}}, []),
    ],
)  # fmt: skip
def test_jobs_by_their_id(spec: dict[str, Any], jobs: list[str]) -> None:
    assert [job for _, job in named_jobs(spec)] == jobs
    if jobs:
        assert [job for job in ("j_1", "j_2", "j_3") if reads(spec, job)] == jobs


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"model": {"init_from": PATH}}, True),
        ({"model": {"init_from": {"path": PATH}}}, True),
        ({"model": {"init_from": f"file://{PATH}"}}, True),
        ({"arms": {"a": {"model.init_from": PATH}}}, True),
        ({"space": {"model.init_from": {"choice": ["x", PATH]}}}, True),
        ({"checkpoint": {"path": "/lab/jobs/j_1/runs/run"}}, True),
        ({"checkpoint": {"mlflow_run": "abc"}}, True),
        ({"model": {"init_from": {"mlflow_run": "abc"}}}, True),
        ({"model": {"init_from": {"mlflow_run": "abd"}}}, False),
        ({"model": {"init_from": "/lab/jobs/j_10/runs/run"}}, False),
        ({"name": PATH, "tracking": {"tags": {"from": "abc"}}}, False),
    ],
)
def test_by_a_path_into_its_folder_or_a_run_of_it(spec: dict[str, Any], expected: bool) -> None:
    assert reads(spec, "j_1", ["abc"]) is expected


def start(init_from: Any) -> RunSpec:
    spec = run_spec(model={"init_from": init_from})
    assert isinstance(spec, RunSpec)
    return spec


def test_weights_to_start_from_are_a_path_or_named_in_one_way() -> None:
    plain, long = (start(way) for way in ("/w.pth", {"path": "/w.pth"}))
    assert plain == long
    # As in releases that knew paths alone.
    assert plain.plain()["model"]["init_from"] == "/w.pth"
    assert plain.plain(defaults=False)["model"]["init_from"] == "/w.pth"
    assert plain.digest() == long.digest()
    other = start({"path": "/w.pth", "other_positions": "leave_out"})
    assert other.digest() != plain.digest()
    for spec in (other, start({"job": "j_1", "cell": "a-s0"}), start({"mlflow_run": "abc"})):
        assert parse_spec(spec.plain()) == spec
    assert start({"job": "j_1"}).plain(defaults=False)["model"]["init_from"] == {"job": "j_1"}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"job": "j_1", "path": "/w"}, "model.init_from: give exactly one of"),
        ({"mlflow_run": "abc", "cell": "a"}, "model.init_from.cell: 'a' is one of a study's"),
        ({"jbo": "j_1"}, "model.init_from.jbo: unknown field"),
    ],
)
def test_what_names_no_weights(wrong: dict[str, str], told: str) -> None:
    with pytest.raises(SpecError, match=re.escape(told)):
        start(wrong)
