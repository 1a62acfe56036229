"""Who may start: reservations against the declared capacity."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from stoplab_platform.admission import (
    PASSING,
    Admission,
    Claim,
    check_runs,
    demand,
    misfits,
)
from stoplab_platform.errors import SpecError
from stoplab_platform.resources import Resources
from stoplab_platform.specs import AnySpec, parse_spec
from stoplab_platform.specs.sweep import LimitsSpec
from support_store import compare_spec, run_spec

FOUR = Resources(4, 0)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def queued(
    name: str, cpus: float, *, priority: int = 0, age_s: float = 0, gpus: float = 0
) -> Claim:
    return Claim(name, priority, NOW - timedelta(seconds=age_s), Resources(cpus, gpus))


def admitted(*jobs: Claim, active: tuple[Claim, ...] = (), capacity: Resources = FOUR) -> list[str]:
    return Admission(active, capacity, NOW).admit(jobs)[0]


def workers(count: int, cpus: float = 1, gpus: float = 0) -> AnySpec:
    compute = {"workers": count, "cpus_per_worker": cpus, "gpus_per_worker": gpus}
    return run_spec(compute=compute, optim={"batch_size": 40})


def sweep(**changes: Any) -> AnySpec:
    space = {"positions.noise_std": {"grid": [0.1, 0.2, 0.3]}, "seed": {"grid": [0, 1]}}
    base = run_spec().plain()
    return parse_spec({"kind": "sweep", "name": "s", "base": base, "space": space, **changes})


def check_fits(spec: AnySpec, capacity: Resources) -> None:
    if problems := list(misfits(spec, capacity, "this lab has {} in all")):
        raise SpecError(problems)


class TestDemand:
    def test_a_run_reserves_its_workers(self) -> None:
        assert demand(workers(2, cpus=1.5, gpus=0.5), Resources(8, 8)) == Resources(3, 1)

    def test_a_study_fills_the_capacity(self) -> None:
        assert demand(compare_spec(seeds=tuple(range(9))), Resources(4.5, 0)) == Resources(4, 0)

    def test_a_study_never_reserves_more_than_its_cells(self) -> None:
        assert demand(compare_spec(seeds=(0, 1)), Resources(64, 0)) == Resources(4, 0)

    def test_max_concurrent_limits_a_study(self) -> None:
        spec = compare_spec(limits={"max_concurrent": 3})
        assert demand(spec, Resources(64, 0)) == Resources(3, 0)
        assert demand(spec, Resources(2, 0)) == Resources(2, 0)

    def test_gpus_decide_where_they_are_scarce(self) -> None:
        base = {**workers(1, cpus=1, gpus=1).plain(), "name": "base"}
        spec = compare_spec(base=base, seeds=tuple(range(9)))
        assert demand(spec, Resources(64, 2)) == Resources(2, 2)

    def test_what_is_too_large_takes_everything(self) -> None:
        assert demand(workers(8), FOUR) == FOUR

    def test_no_more_than_a_sweeps_runs(self) -> None:
        sixteen = Resources(16)
        assert demand(sweep(replicates=2), sixteen) == Resources(12)
        assert demand(sweep(limits={"trials": 5}), sixteen) == Resources(5)


class TestRuns:
    def test_more_than_a_study_allows_are_refused(self) -> None:
        check_runs(sweep())
        check_runs(run_spec())
        with pytest.raises(SpecError, match=r"limits.trials: 5: the study has 6 runs"):
            check_runs(sweep(limits={"trials": 5}))
        check_runs(sweep(limits={"trials": 5}), LimitsSpec(trials=6))
        drawn = sweep(search={"kind": "optuna", "samples": 30}, replicates=4)
        with pytest.raises(SpecError, match="has 120 runs"):
            check_runs(drawn)


class TestFits:
    def test_names_the_field(self) -> None:
        with pytest.raises(SpecError) as caught:
            check_fits(workers(8), FOUR)
        (problem,) = caught.value.problems
        assert problem.dotted == "compute.workers"
        assert "8 CPUs" in problem.message
        assert "4" in problem.message

    def test_every_misfit_at_once_below_base(self) -> None:
        base = {**workers(1, cpus=8, gpus=1).plain(), "name": "base"}
        with pytest.raises(SpecError) as caught:
            check_fits(compare_spec(base=base), FOUR)
        fields = [problem.dotted for problem in caught.value.problems]
        assert fields == ["base.compute.cpus_per_worker", "base.compute.gpus_per_worker"]

    def test_exactly_all_fits(self) -> None:
        check_fits(workers(4), FOUR)
        check_fits(workers(10, cpus=0.4), FOUR)


class TestAdmit:
    def test_priority_then_age(self) -> None:
        young, old = queued("young", 4), queued("old", 4, age_s=9)
        urgent = queued("urgent", 4, priority=1)
        assert admitted(young, old) == ["old"]
        assert admitted(young, old, urgent) == ["urgent"]

    def test_as_many_as_fit(self) -> None:
        jobs = [queued(name, 1.5, age_s=-n) for n, name in enumerate("abc")]
        assert admitted(*jobs) == ["a", "b"]

    def test_active_jobs_hold_their_reservation(self) -> None:
        assert admitted(queued("a", 2), active=(queued("x", 3),)) == []
        assert admitted(queued("a", 1), active=(queued("x", 3),)) == ["a"]

    def test_gpus_count(self) -> None:
        jobs = (queued("a", 1, gpus=1, age_s=1), queued("b", 1, gpus=1))
        assert admitted(*jobs, capacity=Resources(4, 1)) == ["a"]

    def test_a_small_one_passes_for_a_limited_time(self) -> None:
        busy = (queued("x", 2),)
        large, small = queued("large", 4, age_s=5), queued("small", 1)
        assert admitted(large, small, active=busy) == ["small"]
        starved = queued("large", 4, age_s=PASSING.total_seconds() + 1)
        assert admitted(starved, small, active=busy) == []

    def test_lower_priority_never_passes(self) -> None:
        large, small = queued("large", 4, priority=1), queued("small", 1)
        assert admitted(large, small, active=(queued("x", 2),)) == []

    def test_waiting_jobs_are_told_why(self) -> None:
        large, small = queued("large", 4, priority=1), queued("small", 1)
        _, waiting = Admission([queued("x", 2)], FOUR, NOW).admit([small, large])
        assert [waiting[name].position for name in ("large", "small")] == [1, 2]
        assert "needs 4 CPUs" in waiting["large"].reason
        assert "2 CPUs of 4 CPUs" in waiting["large"].reason
        assert "behind large" in waiting["small"].reason
