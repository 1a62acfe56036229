"""A sweep's points: which values each axis takes, and the run that a point stands for."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy.stats import qmc

from stoplab_platform.errors import Problem, SpecError
from stoplab_platform.masks import with_ratio
from stoplab_platform.specs import RunSpec, SweepSpec, applied, parse
from stoplab_platform.specs.base import canonical_digest
from stoplab_platform.specs.sweep import MASKING_RATIO, Axis

Point = dict[str, Any]

TRIES = 20  # draws per wanted point, until a small space has no new ones


class Infeasible(ValueError):
    """No masks can be drawn at this point; the message says why."""


def points(spec: SweepSpec) -> list[Point]:
    """All points that are known beforehand, in order: the grids' product (last axis fastest), or
    the draws; none for an adaptive search.

    Draws are prefix-stable: more samples leave the earlier points as they are. With `random` each
    axis has numbers of its own, so another axis moves none of them. Repeated points are left out.
    """
    if spec.search.kind == "optuna":
        return []
    if spec.search.kind == "grid":
        values = [axis.examples() for axis in spec.space.values()]
        rows = itertools.product(*values)
        return _distinct(dict(zip(spec.space, row, strict=True)) for row in rows)
    assert spec.search.samples is not None, "the spec checks itself"
    drawn = _sobol(spec) if spec.search.kind == "sobol" else _random(spec)
    tries = itertools.islice(drawn, TRIES * spec.search.samples)
    return _distinct(tries, spec.search.samples)


def point_id(point: Mapping[str, Any]) -> str:
    """Ten hex digits that the point's content decides, so that a grown sweep knows it again."""
    return canonical_digest({path: _plain_number(v) for path, v in point.items()})[:10]


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


def drawn(axis: Axis, share: float) -> Any:
    """The axis's value at a share in [0, 1)."""
    u = float(share)
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


def _distinct(found: Iterator[Point], wanted: int | None = None) -> list[Point]:
    kept: dict[str, Point] = {}
    for point in found:
        kept.setdefault(point_id(point), point)
        if len(kept) == wanted:
            break
    return list(kept.values())


def _plain_number(value: Any) -> Any:
    """A whole float counts as the integer that YAML may have made of it."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _random(spec: SweepSpec) -> Iterator[Point]:
    generators = {
        path: np.random.default_rng([spec.search.seed, zlib.crc32(path.encode())])
        for path in spec.space
    }
    while True:
        yield {path: drawn(axis, generators[path].random()) for path, axis in spec.space.items()}


def _sobol(spec: SweepSpec) -> Iterator[Point]:
    """Scrambled Sobol numbers, one dimension an axis; balanced at powers of two."""
    engine = qmc.Sobol(len(spec.space), scramble=True, rng=np.random.default_rng(spec.search.seed))
    while True:
        (row,) = engine.random(1)
        pairs = zip(spec.space.items(), row, strict=True)
        yield {path: drawn(axis, u) for (path, axis), u in pairs}


def _axis_name(path: str, short: str, names: list[str]) -> str:
    if path == MASKING_RATIO:
        return "ratio"
    return short if names.count(short) == 1 else path


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
