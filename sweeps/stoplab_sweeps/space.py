"""A sweep's points: which values each axis takes, and the run that a point stands for."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy.stats import qmc

from stoplab_platform.errors import SpecError
from stoplab_platform.masks import with_ratio
from stoplab_platform.specs import RunSpec, SweepSpec, override, parse
from stoplab_platform.specs.base import Spec, canonical_digest
from stoplab_platform.specs.masking import MaskingSpec
from stoplab_platform.specs.sweep import MASKING_RATIO, Axis

Point = dict[str, Any]

TRIES = 20  # draws per wanted point, until a small space has no new ones


ANY_MASKS = {"kind": "random", "ratio": 0.5}
"""Masks that fit every grid: they stand in while those of a wished ratio are sought."""


class Infeasible(ValueError):
    """No run can be made of this point: masks or other fields do not fit; the message says why."""


class _Masking(Spec):
    """A run's masking alone."""

    masking: MaskingSpec


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
    """The run of one point; Infeasible where its fields do not fit together.

    Values that a field refuses whatever stands beside it are found when the sweep's spec is read.
    """
    changes = {path: value for path, value in point.items() if path != MASKING_RATIO}
    data = override(spec.base.plain(), {**changes, "name": name, "seed": seed})
    try:
        if MASKING_RATIO in point:
            data["masking"] = _masking(data, float(point[MASKING_RATIO]))
        return parse(RunSpec, data)
    except SpecError as error:
        reasons = (f"{problem.dotted}: {problem.message}" for problem in error.problems)
        raise Infeasible("; ".join(reasons)) from error


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


def _masking(data: Mapping[str, Any], ratio: float) -> dict[str, Any]:
    """A run's masking at a wished ratio; the scale that stands there itself need not fit."""
    grid = parse(RunSpec, {**data, "masking": ANY_MASKS}).grid
    given = parse(_Masking, {"masking": data["masking"]}).masking
    try:
        return with_ratio(given, grid, ratio).plain()
    except ValueError as error:
        raise Infeasible(str(error)) from error


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
