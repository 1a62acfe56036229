"""SweepSpec: a RunSpec and what varies in it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator

from stoplab_platform.errors import Problem, SpecError
from stoplab_platform.specs.base import Spec
from stoplab_platform.specs.limits import MOST_RUNS, JobLimits
from stoplab_platform.specs.overrides import applied
from stoplab_platform.specs.run import FieldName, Name, RunSpec, limit_problems

MASKING_RATIO = "masking_ratio"
CHANGEABLE = ("optim.", "positions.noise_std", "masking.", MASKING_RATIO)
"""Beginnings of fields that a run may change on its way."""
FIXED = ("optim.epochs", "optim.batch_size", "optim.betas", "masking.kind")
"""Among those, what its steps are counted by, its optimiser keeps, or is another method."""
ALIKE = "all runs of a sweep are judged alike; set base.evals and base.data.eval"
NO_AXES = {
    "name": "every run has a name of its own",
    "kind": "a sweep holds runs",
    "spec_version": "a sweep has one format",
    "tracking": "all runs of a sweep stand together in the tracker",
    "compute": "all runs of a sweep get the same resources",
    "evals": ALIKE,
}
"""Fields that cannot be varied, or hold nothing that can; and why."""
MOST_VALUES = 1000
"""Values of all axes of one sweep; each is tried in a spec of its own beforehand."""
COMPUTE_AXES = ("compute.precision", "compute.threads", "compute.compile")
"""Fields below `compute` that can be varied: they take no other resources."""


class Axis(Spec):
    """One varied field: exactly one of the ways below."""

    grid: tuple[Any, ...] | None = Field(default=None, max_length=MOST_VALUES)
    """Every one of these values."""
    choice: tuple[Any, ...] | None = Field(default=None, max_length=MOST_VALUES)
    """One of these values, drawn evenly."""
    uniform: tuple[float, float] | None = None
    """[low, high], drawn evenly."""
    loguniform: tuple[float, float] | None = None
    """[low, high] above 0, drawn evenly in the logarithm."""
    int_: tuple[int, int] | None = Field(default=None, alias="int")
    """[low, high], whole numbers, both ends included."""

    def checks(self) -> Iterator[Problem]:
        """Exactly one way; ranges rise; lists hold something."""
        ways = {
            "grid": self.grid,
            "choice": self.choice,
            "uniform": self.uniform,
            "loguniform": self.loguniform,
            "int": self.int_,
        }
        given = {name: value for name, value in ways.items() if value is not None}
        if len(given) != 1:
            yield Problem((), f"give exactly one of {', '.join(ways)}; got {sorted(given)}")
            return
        ((name, value),) = given.items()
        if name in ("grid", "choice"):
            if not value:
                yield Problem((name,), "needs at least one value")
        elif value[0] > value[1] or (name == "loguniform" and value[0] <= 0):
            floor = " above 0" if name == "loguniform" else ""
            yield Problem((name,), f"{list(value)} must be [low, high]{floor} with low <= high")

    def examples(self) -> tuple[Any, ...]:
        """All listed values, or the two ends of a range."""
        way = self.grid or self.choice or self.uniform or self.loguniform or self.int_
        return tuple(way or ())

    def probes(self) -> tuple[Any, ...]:
        """Values to check a field by: the examples, and one of what a range draws inside."""
        low_high = self.uniform or self.loguniform
        inside = () if low_high is None else (low_high[0] + (low_high[1] - low_high[0]) / math.e,)
        return (*self.examples(), *inside)


class SearchSpec(Spec):
    """How points are chosen."""

    kind: Literal["grid", "random", "sobol", "optuna"] = "grid"
    """`grid`: all points, needs grid axes only. `random`, `sobol` (scrambled, spreads more
    evenly): points drawn beforehand. `optuna`: points drawn as results come. Default grid."""
    samples: int | None = Field(default=None, ge=1, le=MOST_RUNS)
    """Points to draw; null with `grid`. With `optuna` those that can run. Default null."""
    sampler: Literal["tpe", "gp"] = "tpe"
    """Optuna's sampler: `tpe` (Parzen estimator) or `gp` (Gaussian process). Default tpe: Optuna's
    own."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the search itself. Default 0."""


class SchedulerSpec(Spec):
    """Which runs end early, or go on at another point, judged by the objective."""

    kind: Literal["none", "asha", "median", "pbt"] = "none"
    """`asha`: at each rung, a run below the best 1/reduction_factor of those before it ends
    (arXiv:1810.05934). `median`: a run ends whose best score is below the median of the others'
    running means (Vizier, 2017). `pbt`: the points are a population; every interval_epochs the
    runs that are behind go on from the weights of one that is ahead, at a point near its own
    (arXiv:1711.09846). Default none."""
    grace_epochs: int = Field(default=1, ge=1, le=1_000_000)
    """No run ends before so many epochs; `asha`'s first rung (epochs). Default 1: Ray Tune's."""
    reduction_factor: float = Field(default=4, gt=1, le=1000)
    """Of `asha`: rungs lie at grace_epochs times its powers, and the best 1/reduction_factor
    pass. Default 4: Ray Tune's, and the paper's."""
    min_samples: int = Field(default=3, ge=1, le=1_000_000)
    """Of `median`: other runs that must have come as far (runs). Default 3: Ray Tune's."""
    interval_epochs: int = Field(default=1, ge=1, le=1_000_000)
    """Of `pbt`: epochs between two looks at the population. Default 1."""
    quantile: float = Field(default=0.25, gt=0, le=0.5)
    """Of `pbt`: the share of members that is behind, and that is ahead. Default 0.25: Ray
    Tune's."""
    resample: float = Field(default=0.25, ge=0, le=1)
    """Of `pbt`: how often a value is drawn anew instead of moved by a fifth. Default 0.25: Ray
    Tune's."""


class ObjectiveSpec(Spec):
    """What the sweep is after."""

    metric: str = "val/knn_top1"
    """A metric of an evaluation on the validation split. Default val/knn_top1."""
    mode: Literal["max", "min"] = "max"
    """Default max."""

    @field_validator("metric")
    @classmethod
    def _on_validation(cls, metric: str) -> str:
        if not metric.startswith("val/"):
            raise ValueError(
                f"{metric!r}: nothing is selected on the test set or by the loss; give val/..."
            )
        return metric


class LimitsSpec(JobLimits):
    """Where a sweep or comparison stops: no new run starts; those that run come to their end."""

    trials: int = Field(default=100, ge=1, le=MOST_RUNS)
    """Most runs. Default 100."""
    max_concurrent: int | None = Field(default=None, ge=1, le=MOST_RUNS)
    """Most runs at a time; null: as many as the cluster's resources hold. Default null."""


class SweepSpec(Spec):
    """Many runs that differ in the swept fields."""

    kind: Literal["sweep"]
    """Names this kind of spec."""
    spec_version: Literal[1] = 1
    """Version of this format. Default 1."""
    name: Name
    """A name for people."""
    base: RunSpec
    """The run that is varied; in a YAML file also a path to one, relative to the file."""
    space: dict[FieldName, Axis] = Field(max_length=32)
    """Dotted field of the RunSpec to axis; `masking_ratio` moves `masking.target.scale` (of random
    masking the ratio) to where the effective masked fraction is the wished one."""
    search: SearchSpec = SearchSpec()
    """How points are chosen."""
    scheduler: SchedulerSpec = SchedulerSpec()
    """Which trials end early."""
    objective: ObjectiveSpec = ObjectiveSpec()
    """What the sweep is after."""
    replicates: int = Field(default=1, ge=1, le=1000)
    """Seeds per point, the same ones at every point. Default 1."""
    limits: LimitsSpec = LimitsSpec()
    """Where the sweep stops."""

    def checks(self) -> Iterator[Problem]:
        """Axes name fields and hold values that fit; the search can run them."""
        if not self.space:
            yield Problem(("space",), "needs at least one axis")
        if (values := sum(len(axis.examples()) for axis in self.space.values())) > MOST_VALUES:
            yield Problem(("space",), f"lists {values} values in all; at most {MOST_VALUES} can be")
            return
        for path, axis in self.space.items():
            yield from self._axis_problems(path, axis)
        yield from limit_problems(self.base, ("space",), self.space)
        if self.objective.metric.removeprefix("val/") not in self.base.metrics():
            yield Problem(
                ("objective", "metric"),
                f"{self.objective.metric!r} is not measured; base.evals measures "
                f"{['val/' + name for name in self.base.metrics()]}",
                (("base", "evals"),),
            )
        elif self.scheduler.kind != "none":
            yield from self._scheduler_problems()

    def num_runs(self) -> int:
        """Runs of the whole study: points times replicates; of a population, all its legs."""
        points = self.search.samples
        if points is None:
            points = math.prod(len(axis.examples()) for axis in self.space.values())
        return points * self.replicates * self.generations()

    def most_at_once(self) -> int:
        """Runs that may go on side by side: all, of a population one leg of each member."""
        return self.num_runs() // self.generations()

    def _scheduler_problems(self) -> Iterator[Problem]:
        if self.scheduler.kind == "pbt":
            yield from self._population_problems()
            return
        measured = self.objective.metric.removeprefix("val/")
        epochs = self.base.optim.epochs
        (judge,) = (one for one in self.base.evals if measured in one.metrics())
        if judge.every_epochs is None or judge.every_epochs >= epochs:
            yield Problem(
                ("scheduler", "kind"),
                f"{self.scheduler.kind!r} judges running runs by {self.objective.metric}, which "
                f"base.evals measures only at the end; give its {judge.kind} an every_epochs "
                f"below {epochs}",
                (("base", "evals"), ("base", "optim", "epochs")),
            )
        if self.scheduler.grace_epochs >= epochs:
            yield Problem(
                ("scheduler", "grace_epochs"),
                f"{self.scheduler.grace_epochs} leaves nothing to end early; give less than "
                f"base.optim.epochs ({epochs})",
                (("base", "optim", "epochs"),),
            )

    def _population_problems(self) -> Iterator[Problem]:
        kind, epochs = ("scheduler", "kind"), self.base.optim.epochs
        if self.search.kind == "optuna":
            text = "'pbt' chooses points itself; search grid, random or sobol for the first ones"
            yield Problem(kind, text, (("search", "kind"),))
        if self.replicates != 1:
            text = f"{self.replicates}: the members of a population share one seed; give 1"
            yield Problem(("replicates",), text, (kind,))
        if self.scheduler.interval_epochs >= epochs:
            yield Problem(
                ("scheduler", "interval_epochs"),
                f"{self.scheduler.interval_epochs} leaves no second look at the population; give "
                f"less than base.optim.epochs ({epochs})",
                (("base", "optim", "epochs"),),
            )
        for path in self.space:
            fixed = any(f"{path}.".startswith(f"{field}.") for field in FIXED)
            if fixed or not path.startswith(CHANGEABLE):
                yield Problem(
                    ("space", path),
                    "cannot change while a run goes on, as 'pbt' needs; it can where it starts "
                    f"with {', '.join(CHANGEABLE)}, but for {', '.join(FIXED)}",
                    (kind,),
                )

    def generations(self) -> int:
        """Legs of a run of a population; 1 without one."""
        if self.scheduler.kind != "pbt":
            return 1
        return math.ceil(self.base.optim.epochs / self.scheduler.interval_epochs)

    def _axis_problems(self, path: str, axis: Axis) -> Iterator[Problem]:
        at = ("space", path)
        is_grid = axis.grid is not None
        if self.search.kind == "grid" and not is_grid:
            yield Problem(
                at,
                "a grid search needs a grid axis; give `grid`, or search random",
                (("search", "kind"),),
            )
        if self.search.kind != "grid" and self.search.samples is None:
            yield Problem(("search", "samples"), f"a {self.search.kind} search needs samples")
        if path == MASKING_RATIO:
            if not all(isinstance(v, (int, float)) and 0 < v < 1 for v in axis.examples()):
                yield Problem(at, f"{list(axis.examples())}: ratios must lie inside (0, 1)")
            return
        if (reason := _no_axis(path)) is not None:
            yield Problem(at, f"cannot be varied: {reason}")
            return
        yield from self._value_problems(path, axis)

    def _value_problems(self, path: str, axis: Axis) -> Iterator[Problem]:
        at = ("space", path)
        for value in axis.probes():
            try:
                run = applied(self.base, {path: value}, RunSpec)
                if (run.evals, run.data.eval_data()) != (
                    self.base.evals,
                    self.base.data.eval_data(),
                ):
                    yield Problem(at, f"{value!r}: {ALIKE}")
            except SpecError as error:
                # A point that no mask can be drawn for is reported when the sweep runs,
                # as infeasible; a value its own field refuses is a mistake in the spec.
                for problem in error.problems:
                    if problem.dotted == "data.eval":
                        yield Problem(at, f"{value!r}: {problem.message}")
                    elif problem.dotted == path and not problem.involves:
                        yield Problem(at, problem.message)
                    elif path.startswith(problem.dotted) and not problem.involves:
                        yield Problem(at, f"{path}: {problem.message}")


def _no_axis(path: str) -> str | None:
    """Why a field cannot be an axis; None where it can."""
    if path in COMPUTE_AXES:
        return None
    if f"{path}.".startswith("data.eval."):
        return ALIKE
    return NO_AXES.get(path.partition(".")[0])
