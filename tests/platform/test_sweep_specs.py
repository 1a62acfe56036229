from __future__ import annotations

from typing import Any

import pytest

from stoplab_platform.errors import SpecError
from stoplab_platform.specs import SweepSpec, parse
from support_specs import example

LOW = {"kind": "low_shot", "fraction": 0.1, "every_epochs": 2}
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


DIGITS = {"train": "digits/train", "test": "digits/test"}


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("evals", [[{"kind": "knn", "k": 1}], [{"kind": "knn", "k": 20}]]),
        ("evals.0.k", [1, 20]),
        ("data.eval", [DIGITS, {**DIGITS, "val_fraction": 0.3}]),
        ("data.eval.val_fraction", [0.1, 0.3]),
    ],
)
@pytest.mark.parametrize("given", [None, DIGITS])
def test_all_runs_are_judged_alike(path: str, values: list[Any], given: Any) -> None:
    base = example("sweep")["base"]
    base["data"]["eval"] = given
    changes = {"space": {path: {"grid": values}}, "search": {"kind": "grid"}, "base": base}
    assert "judged alike" in problems(**changes)[f"space.{path}"]


def test_other_images_to_train_on_are_an_axis_where_the_labelled_ones_stay() -> None:
    base = example("sweep")["base"]
    space = {"data.train": {"grid": ["digits", "/data/train-{000..009}.tar"]}}
    changes = {"space": space, "search": {"kind": "grid"}, "base": base}
    assert "evals need labelled shards" in problems(**changes)["space.data.train"]
    base["data"]["eval"] = DIGITS
    parse(SweepSpec, example("sweep", **changes))


def test_an_objective_may_have_a_label() -> None:
    evals = [{"kind": "low_shot", "per_class": 5}, {**LOW, "label": "ten"}]
    base = {**example("sweep")["base"], "evals": evals}
    objective = {"metric": "val/low_shot_top1.ten"}
    parse(SweepSpec, example("sweep", base=base, objective=objective, scheduler={"kind": "asha"}))
    found = problems(base=base, objective={"metric": "val/low_shot_top1.one"})
    assert "'val/low_shot_top1.ten'" in found["objective.metric"]


def test_precision_is_an_axis() -> None:
    parse(SweepSpec, example("sweep", space={"compute.precision": {"grid": ["fp32", "bf16"]}}))


def test_ranges_are_tried_inside_too() -> None:
    found = problems(
        space={"model.depth": {"uniform": [1, 4]}}, search={"kind": "random", "samples": 2}
    )
    assert "model.depth" in found["space.model.depth"] or "integer" in found["space.model.depth"]
