"""A sweep's points: which values each axis takes, and the run that a point stands for."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stoplab_platform.errors import Problem, SpecError
from stoplab_platform.masks import with_ratio
from stoplab_platform.specs import RunSpec, SweepSpec, applied, parse
from stoplab_platform.specs.sweep import MASKING_RATIO, Axis

Point = dict[str, Any]

TRIES = 20  # draws per wanted point, until a small space has no new ones


class Infeasible(ValueError):
    """No masks can be drawn at this point; the message says why."""


def points(spec: SweepSpec) -> list[Point]:
    """All points in order: the product of the grids (last axis fastest), or the random draws.

    Draws are prefix-stable: more samples leave the earlier points as they are, and each axis
    has numbers of its own, so another axis moves none of them. Repeated points are left out.
    """
    if spec.search.kind == "grid":
        values = [axis.examples() for axis in spec.space.values()]
        return [dict(zip(spec.space, row, strict=True)) for row in itertools.product(*values)]
    assert spec.search.samples is not None, "the spec checks itself"
    found: dict[str, Point] = {}
    for point in itertools.islice(_draws(spec), TRIES * spec.search.samples):
        found.setdefault(json.dumps(point, sort_keys=True), point)
        if len(found) == spec.search.samples:
            break
    return list(found.values())


def run_at(spec: SweepSpec, point: Mapping[str, Any], *, seed: int, name: str) -> RunSpec:
    """The run of one point; Infeasible where no masks fit, SpecError for any other problem."""
    changes = {path: value for path, value in point.items() if path != MASKING_RATIO}
    try:
        run = applied(spec.base, {**changes, "name": name, "seed": seed}, RunSpec)
    except SpecError as error:
        if all(problem.path[0] == "masking" for problem in error.problems if problem.path):
            reasons = (f"{p.dotted}: {p.message}" for p in error.problems)
            raise Infeasible("; ".join(reasons)) from error
        raise SpecError(
            [
                Problem(("space",), f"{label(point)}: {p.dotted}: {p.message}")
                for p in error.problems
            ]
        ) from error
    if MASKING_RATIO not in point:
        return run
    try:
        masking = with_ratio(run.masking, run.grid, float(point[MASKING_RATIO]))
    except ValueError as error:
        raise Infeasible(str(error)) from error
    return parse(RunSpec, {**run.plain(), "masking": masking.plain()})


def seed_of(spec: SweepSpec, point: Mapping[str, Any], replicate: int) -> int:
    """The same seeds at every point: the base's (or the point's own) and those after it."""
    return int(point.get("seed", spec.base.seed)) + replicate


def label(point: Mapping[str, Any]) -> str:
    """A point for people: `noise_std=0.25 ratio=0.6`."""
    short = {path: path.rpartition(".")[2] for path in point}
    names = list(short.values())
    return " ".join(
        f"{_axis_name(path, short[path], names)}={_value(value)}" for path, value in point.items()
    )


def _draws(spec: SweepSpec) -> Iterator[Point]:
    generators = {
        path: np.random.default_rng([spec.search.seed, zlib.crc32(path.encode())])
        for path in spec.space
    }
    while True:
        yield {path: _draw(axis, generators[path]) for path, axis in spec.space.items()}


def _draw(axis: Axis, generator: np.random.Generator) -> Any:
    u = float(generator.random())
    if axis.uniform is not None:
        low, high = axis.uniform
        return low + u * (high - low)
    if axis.loguniform is not None:
        low, high = axis.loguniform
        return min(high, low * (high / low) ** u)
    if axis.int_ is not None:
        first, last = axis.int_
        return first + int(u * (last - first + 1))
    values = axis.examples()
    return values[int(u * len(values))]


def _axis_name(path: str, short: str, names: list[str]) -> str:
    if path == MASKING_RATIO:
        return "ratio"
    return short if names.count(short) == 1 else path


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
