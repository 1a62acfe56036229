"""What a spec will take before it is run: hours, memory, and what the numbers rest on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import reduce
from operator import add
from typing import Any

from stoplab_platform.admission import one_trial
from stoplab_platform.cost import Flops, Memory, Parameters, Range, flops
from stoplab_platform.cost import memory as memory_of
from stoplab_platform.cost import parameters as parameters_of
from stoplab_platform.counting import Count, count_images
from stoplab_platform.judging import Labelled, judging, labelled
from stoplab_platform.rates import Confidence, Measured, Rate, rate
from stoplab_platform.resources import Resources
from stoplab_platform.specs import (
    AnySpec,
    ComparisonSpec,
    EvaluationSpec,
    RunSpec,
    SweepSpec,
)
from stoplab_platform.study_runs import number, shorter, variants

START_S = Range(4, 15, 60)
"""Seconds in which a run's process starts, torch is imported, data is opened (assumed)."""
NO_IMAGES = "how many images the data holds is not known here, so no hours are told; give `images`"
ORDER: tuple[Confidence, ...] = ("measured", "scaled", "assumed")


@dataclass(frozen=True)
class RestsOn:
    """Why the numbers are what they are."""

    sentence: str
    facts: tuple[str, ...]


@dataclass(frozen=True)
class Estimate:
    """What a job will take. Hours are None where they cannot be told."""

    kind: str
    name: str
    spec_digest: str
    runs: int
    """Pretraining runs (an evaluation: 1)."""
    concurrent: int
    """Runs at a time."""
    images: int | None
    """Of one epoch."""
    parameters: Parameters | None
    flops_per_image: Flops | None
    memory: Memory | None
    """Of one worker."""
    samples_per_s: Range | None
    """Of one run."""
    run_hours: Range | None
    """Of one run, evaluations included: the mean over a study's."""
    gpu_hours: Range | None
    cpu_hours: Range | None
    wall_hours: Range | None
    confidence: Confidence
    rests_on: RestsOn

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        found = asdict(self)
        if self.parameters is not None:
            found["parameters"]["trained"] = self.parameters.trained
        return found


@dataclass(frozen=True)
class _Run:
    """One run of a job."""

    rate: Rate
    hours: Range | None


def estimate(
    spec: AnySpec,
    capacity: Resources,
    known: Sequence[Measured] = (),
    *,
    images: int | None = None,
    trained: RunSpec | None = None,
) -> Estimate:
    """What ``spec`` will take where jobs may reserve ``capacity``.

    ``known`` are finished runs of the lab; ``images`` the size of the training set, where it is
    not to be counted; ``trained`` the run whose checkpoint an evaluation judges.
    """
    if isinstance(spec, EvaluationSpec):
        return _evaluation(spec, known, images, trained)
    base = spec if isinstance(spec, RunSpec) else spec.base
    counted = _images(base, known, images)
    kinds = list(variants(spec))
    runs = [_run(one, known, counted) for one in kinds]
    hours = None if counted is None else _mean([one.hours for one in runs if one.hours])
    count, at_once = number(spec, capacity)
    wall = gpu = cpu = None
    if hours is not None:
        trial = one_trial(spec)
        share, spent = shorter(spec), hours * count
        spent = Range(spent.low * share, spent.value * math.sqrt(share), spent.high)
        gpu, cpu = spent * trial.gpus, spent * trial.cpus
        # Runs of equal length go in rounds; of unequal ones the places are never all empty.
        wall = spent * (math.ceil(count / at_once) / count)
    worst = max(runs, key=lambda one: ORDER.index(one.rate.confidence)).rate
    return Estimate(
        kind=spec.kind,
        name=spec.name,
        spec_digest=spec.digest(),
        runs=count,
        concurrent=at_once,
        images=None if counted is None else counted.images,
        parameters=parameters_of(base),
        flops_per_image=flops(base),
        memory=memory_of(max(kinds, key=lambda one: memory_of(one).total.value)),
        samples_per_s=worst.samples_per_s,
        run_hours=hours,
        gpu_hours=gpu,
        cpu_hours=cpu,
        wall_hours=wall,
        confidence=worst.confidence,
        rests_on=RestsOn(_sentence(worst), tuple(_facts(spec, worst, counted, count, at_once))),
    )


def _evaluation(
    spec: EvaluationSpec, known: Sequence[Measured], given: int | None, trained: RunSpec | None
) -> Estimate:
    trial = one_trial(spec)
    hours = found = None
    facts = ["the checkpoint's run is not known here, so neither its size nor hours are told"]
    if trained is not None:
        judged = spec.judged(trained)
        found = rate(judged, known)
        images = labelled(judged, None if given is None else Count(given, "as given"))
        took = None if images is None else judging(judged, found, images, scheduled=False)
        hours = took and (START_S + took) * (1 / 3600)
        facts = [_judged(images, took), *found.runs]
    return Estimate(
        kind=spec.kind,
        name=spec.name,
        spec_digest=spec.digest(),
        runs=1,
        concurrent=1,
        images=None,
        parameters=None if trained is None else parameters_of(trained),
        flops_per_image=None if trained is None else flops(trained),
        memory=None,
        samples_per_s=None,
        run_hours=hours,
        gpu_hours=hours and hours * trial.gpus,
        cpu_hours=hours and hours * trial.cpus,
        wall_hours=hours,
        confidence="assumed" if found is None or found.confidence == "assumed" else "scaled",
        rests_on=RestsOn(facts[0] if found is None else _sentence(found), tuple(facts)),
    )


def _run(spec: RunSpec, known: Sequence[Measured], counted: Count | None) -> _Run:
    found = rate(spec, known)
    if counted is None:
        return _Run(found, None)
    steps = spec.optim.epochs * (counted.images // spec.optim.batch_size)
    speed = found.samples_per_s
    work = steps * spec.optim.batch_size
    training = Range(work / speed.high, work / speed.value, work / speed.low)
    return _Run(found, (training + _beside(spec, found, counted)) * (1 / 3600))


def _beside(spec: RunSpec, found: Rate, counted: Count) -> Range:
    """Seconds of start and evaluations."""
    if found.overhead_s is not None:
        return START_S + Range(found.overhead_s / 1.5, found.overhead_s, found.overhead_s * 1.5)
    if not spec.evals:
        return START_S
    images = labelled(spec, counted)
    return START_S if images is None else START_S + judging(spec, found, images)


def _images(base: RunSpec, known: Sequence[Measured], given: int | None) -> Count | None:
    if given is not None:
        return Count(given, "as given")
    if counted := count_images(base.data.train):
        return counted
    for one in known:
        if one.spec.data.train == base.data.train:
            return Count(one.images, f"as in {one.run}")
    return None


def _mean(hours: Sequence[Range]) -> Range:
    return reduce(add, hours) * (1 / len(hours))


def _sentence(found: Rate) -> str:
    return found.sentence[0].upper() + found.sentence[1:] + "."


def _facts(
    spec: RunSpec | SweepSpec | ComparisonSpec,
    found: Rate,
    counted: Count | None,
    count: int,
    at_once: int,
) -> Iterator[str]:
    yield f"{counted.images} images an epoch: {counted.source}" if counted else NO_IMAGES
    if found.overhead_s is not None:
        yield (
            f"{found.overhead_s:.0f} s beside the steps, as in runs with the same evaluations, and "
            f"{START_S.value:.0f} s to start"
        )
    else:
        base = spec if isinstance(spec, RunSpec) else spec.base
        images = labelled(base, counted) if base.evals else None
        took = None if images is None else judging(base, found, images)
        yield f"{START_S.value:.0f} s to start: assumed"
        if base.evals and counted:
            yield _judged(images, took)
    if count > 1:
        yield f"{count} runs, {at_once} at a time in what jobs may reserve here"
    if isinstance(spec, SweepSpec) and shorter(spec) < 1:
        yield f"{spec.scheduler.kind} ends runs early: high has all epochs, low has few"
    limits: Mapping[str, Any] = (
        spec.limits.plain() if isinstance(spec, SweepSpec | ComparisonSpec) else {}
    )
    for name in ("gpu_hours", "wall_hours"):
        if limits.get(name) is not None:
            yield f"limits.{name} ({limits[name]:g}) may stop it before; that is not counted here"
    yield from (f"measured in {run}" for run in found.runs)


def _judged(images: Labelled | None, took: Range | None) -> str:
    if images is None or took is None:
        return NO_IMAGES
    return (
        f"evaluations: about {took.value / 3600:.2g} h on one worker, while the others wait; "
        f"{images.source}, {images.classes} classes assumed"
    )
