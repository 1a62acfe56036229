"""Plug-ins: packages that bring a positions, a masking or an objective of their own.

A package names a spec class of its own by an entry point of the group `stoplab.plugins`, as
`positions.clipped = "my_package:ClippedPositions"`; what stands behind the dot is the `kind` in a
spec. It is imported where a spec first names it, also by processes without torch.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pkgutil import resolve_name
from typing import Any

from stoplab_platform.errors import SpecError, StoplabError

GROUP = "stoplab.plugins"
PARTS = ("positions", "masking", "objective")


class PluginError(StoplabError, ValueError):
    """A plug-in is installed and cannot be used."""


@cache
def installed(part: str) -> dict[str, EntryPoint]:
    """The plug-ins of a part (one of `PARTS`), by kind; none of them is imported."""
    points = (point for point in entry_points(group=GROUP) if point.name.startswith(f"{part}."))
    return {point.name.partition(".")[2]: point for point in sorted(points, key=lambda p: p.name)}


def spec_class(part: str, kind: str) -> Any:
    """The spec class of an installed plug-in; PluginError where it cannot be imported."""
    point = installed(part)[kind]
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise PluginError(f"plug-in {origin(point)} cannot be imported: {error}") from error


def torch_part(part: str, kind: str, implementation: str) -> Any:
    """What a plug-in's spec names as its torch part; SpecError where it cannot be imported."""
    try:
        return resolve_name(implementation)
    except (ImportError, AttributeError, ValueError) as error:
        text = (
            f"{kind!r} names {implementation!r} as what trains, which cannot be imported: {error}"
        )
        raise SpecError.of(part, text) from error


def origin(point: EntryPoint) -> str:
    """The package that brings a plug-in, and its version: `stoplab-clipped 0.1.0`."""
    assert point.dist is not None, "entry points are found in distributions"
    return f"{point.dist.name} {point.dist.version}"


def versions(kinds: dict[str, str]) -> dict[str, str]:
    """Of a run's kinds, by part, those that are plug-ins: `{"positions.clipped": "name 0.1.0"}`."""
    found = {part: installed(part).get(kind) for part, kind in kinds.items()}
    return {f"{part}.{kinds[part]}": origin(point) for part, point in found.items() if point}
