from __future__ import annotations

from typing import Any

import pytest

from stoplab_platform.errors import SpecError
from stoplab_platform.specs import SweepSpec, parse
from support_specs import example

KNN = {"kind": "knn", "every_epochs": 10}


def problems(**changes: Any) -> dict[str, str]:
    with pytest.raises(SpecError) as refused:
        parse(SweepSpec, example("sweep", **changes))
    return {problem.dotted: problem.message for problem in refused.value.problems}


def test_a_scheduler_needs_scheduled_scores() -> None:
    found = problems(scheduler={"kind": "asha", "grace_epochs": 600})
    assert "base.evals measures only at the end" in found["scheduler.kind"]
    assert "less than base.optim.epochs (600)" in found["scheduler.grace_epochs"]
    base = {**example("sweep")["base"], "evals": [KNN]}
    spec = parse(SweepSpec, example("sweep", base=base, scheduler={"kind": "median"}))
    assert (spec.scheduler.grace_epochs, spec.scheduler.min_samples) == (1, 3)


def test_scores_after_the_end_are_none() -> None:
    base = {**example("sweep")["base"], "evals": [{**KNN, "every_epochs": 600}]}
    assert "scheduler.kind" in problems(base=base, scheduler={"kind": "asha"})


@pytest.mark.parametrize("kind", ["sobol", "optuna", "random"])
def test_searches_that_draw_need_samples(kind: str) -> None:
    assert "search.samples" in problems(search={"kind": kind})
    found = parse(SweepSpec, example("sweep", search={"kind": kind, "samples": 3}))
    assert found.search.sampler == "tpe"


@pytest.mark.parametrize(
    "path", ["name", "kind", "tracking.experiment", "compute.workers", "compute.gpus_per_worker"]
)
def test_what_takes_other_resources_or_means_nothing_is_no_axis(path: str) -> None:
    assert "cannot be varied" in problems(space={path: {"grid": [1, 2]}})[f"space.{path}"]


def test_precision_is_an_axis() -> None:
    parse(SweepSpec, example("sweep", space={"compute.precision": {"grid": ["fp32", "bf16"]}}))


def test_ranges_are_tried_inside_too() -> None:
    found = problems(
        space={"model.depth": {"uniform": [1, 4]}}, search={"kind": "random", "samples": 2}
    )
    assert "model.depth" in found["space.model.depth"] or "integer" in found["space.model.depth"]
