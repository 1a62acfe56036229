"""ComparisonSpec: a RunSpec, named arms and seeds; one seed times all arms is a block."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import Field

from stoplab_platform.errors import Problem, SpecError
from stoplab_platform.specs.base import Spec, canonical_digest
from stoplab_platform.specs.overrides import applied
from stoplab_platform.specs.run import FieldName, Name, RunSpec, limit_problems
from stoplab_platform.specs.sweep import LimitsSpec

MOST_BLOCKS = 500  # of a plan of looks
Overrides = Annotated[dict[FieldName, Any], Field(max_length=200)]
Spending = Literal["obrien_fleming", "pocock"]


class PrimarySpec(Spec):
    """What decides, fixed before the runs."""

    metric: str = "test/linear_top1"
    """The metric whose difference is judged. Default test/linear_top1."""
    min_effect: float = Field(default=0.005, ge=0)
    """Smallest difference that matters (in the metric's own unit). Default 0.005."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Error rate of the interval. Default 0.05."""
    looks: tuple[int, ...] | None = Field(default=None, max_length=MOST_BLOCKS)
    """Numbers of complete blocks at which a verdict may be given while seeds are added; rising,
    the last is the most that ever count: the first so many, in the order of the seeds, so that
    seeds can stand in for blocks that were lost. All looks together err in alpha. Default null:
    one look, at all seeds."""
    spending: Spending = "obrien_fleming"
    """How looks share alpha: `obrien_fleming` asks much of early ones and little more of the last
    than a single look; `pocock` treats them almost alike. Default obrien_fleming."""

    def checks(self) -> Iterator[Problem]:
        """Looks rise, from two blocks on."""
        looks = self.looks
        if looks is not None and not _rise((1, *looks, MOST_BLOCKS + 1)):
            text = f"{list(looks)}: give rising numbers of blocks, from 2 to {MOST_BLOCKS}"
            yield Problem(("looks",), text)


class ComparisonSpec(Spec):
    """The same runs in several arms, seed by seed."""

    kind: Literal["compare"]
    """Names this kind of spec."""
    spec_version: Literal[1] = 1
    """Version of this format. Default 1."""
    name: Name
    """A name for people."""
    base: RunSpec
    """The run that the arms change; in a YAML file also a path to one, relative to the file."""
    arms: dict[Name, Overrides] = Field(max_length=32)
    """Arm to its overrides (dotted field to value); the first is the reference."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), max_length=1000)
    """One block each. Default 0 to 4."""
    primary: PrimarySpec = PrimarySpec()
    """What decides."""
    limits: LimitsSpec = LimitsSpec()
    """Where the comparison stops."""

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return next(iter(self.arms))

    def num_runs(self) -> int:
        """Runs of the whole study."""
        return len(self.arms) * len(self.seeds)

    def most_at_once(self) -> int:
        """Runs that may go on side by side: all."""
        return self.num_runs()

    def arm(self, name: str, seed: int) -> RunSpec:
        """The run of one arm in one block."""
        ending = f"-{name[:60]}-s{seed}"
        run = f"{self.name[: 120 - len(ending)]}{ending}"
        changes = {**self.arms[name], "seed": seed, "name": run}
        return applied(self.base, changes, RunSpec)

    def digest(self) -> str:
        """Identity of the whole spec; the arms' order counts, for the first is the reference."""
        return canonical_digest([self.plain(defaults=False), list(self.arms)])

    def checks(self) -> Iterator[Problem]:
        """Two arms, two different seeds, overrides that fit, a metric that is measured."""
        if len(self.arms) < 2:
            yield Problem(("arms",), f"needs two arms or more; got {list(self.arms)}")
        if len(self.seeds) < 2 or len(set(self.seeds)) != len(self.seeds):
            yield Problem(("seeds",), f"{list(self.seeds)}: give two different seeds or more")
        if not all(0 <= seed < 2**31 for seed in self.seeds):
            yield Problem(("seeds",), f"{list(self.seeds)}: seeds lie in 0 to 2^31 - 1")
        for name, changes in self.arms.items():
            yield from limit_problems(self.base, ("arms", name), changes)
            if "seed" in changes:
                yield Problem(("arms", name, "seed"), "arms share the block's seed; leave it out")
            try:
                run = applied(self.base, changes, RunSpec)
            except SpecError as error:
                for problem in error.problems:
                    yield Problem(("arms", name, problem.dotted), problem.message)
            else:
                yield from _judged_apart(name, run, self.base)
        split, _, metric = self.primary.metric.partition("/")
        if split not in ("val", "test") or metric not in self.base.metrics():
            yield Problem(
                ("primary", "metric"),
                f"{self.primary.metric!r} is not measured; give val/ or test/ and one of "
                f"{list(self.base.metrics())}",
                (("base", "evals"),),
            )


def _judged_apart(arm: str, run: RunSpec, base: RunSpec) -> Iterator[Problem]:
    if run.evals != base.evals:
        yield Problem(("arms", arm, "evals"), "arms are judged alike; leave it out")
    if run.data.eval_data() != base.data.eval_data():
        text = "arms are judged alike: give base.data.eval, and no arm another"
        yield Problem(("arms", arm, "data.eval"), text)


def _rise(numbers: tuple[int, ...]) -> bool:
    return len(numbers) > 2 and all(low < high for low, high in pairwise(numbers))
