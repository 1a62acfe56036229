"""Plug-ins: packages that bring a positions, a masking or an objective of their own.

A package names a spec class of its own by an entry point of the group `stoplab.plugins`, as
`positions.clipped = "my_package:ClippedPositions"`; what stands behind the dot is the `kind` in a
spec. It is imported where a spec first names it, also by processes without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
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
def installed(part: str) -> Mapping[str, tuple[EntryPoint, ...]]:
    """The plug-ins of a part (one of `PARTS`), by kind; none of them is imported."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in sorted(entry_points(group=GROUP), key=origin):
        whose, _, kind = point.name.partition(".")
        if whose == part:
            found[kind] = (*found.get(kind, ()), point)
    return found


def spec_class(part: str, kind: str, base: type) -> Any:
    """The spec class of an installed plug-in, which derives from ``base``; else PluginError."""
    point, *others = installed(part)[kind]
    if others:
        names = " and ".join(origin(one) for one in (point, *others))
        raise PluginError(f"{kind!r} is brought by {names}: uninstall all but one")
    try:
        loaded = point.load()
    except Exception as error:  # a package of others may fail in any way
        raise PluginError(f"plug-in {origin(point)} cannot be imported: {_told(error)}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        text = f"{point.value} derives from no {base.__name__}"
        raise PluginError(f"plug-in {origin(point)} cannot be used: {text}")
    return loaded


def torch_part(part: str, kind: str, implementation: str) -> Any:
    """What a plug-in's spec names as its torch part; SpecError where it cannot be imported."""
    try:
        return resolve_name(implementation)
    except Exception as error:  # as above
        text = (
            f"{kind!r} names {implementation!r} as what trains, which cannot be imported: "
            f"{_told(error)}"
        )
        raise SpecError.of(part, text) from error


def origin(point: EntryPoint) -> str:
    """The package that brings a plug-in, and its version: `stoplab-clipped 0.1.0`."""
    assert point.dist is not None, "entry points are found in distributions"
    return f"{point.dist.name} {point.dist.version}"


def versions(kinds: Mapping[str, str]) -> dict[str, str]:
    """Of a run's plug-ins, by part: `{"positions.clipped": "stoplab-clipped 0.1.0"}`."""
    points = {f"{part}.{kind}": installed(part)[kind][0] for part, kind in kinds.items()}
    return {name: origin(point) for name, point in points.items()}


def _told(error: Exception) -> str:
    """An error of foreign code, whose text alone may say nothing."""
    return str(error) if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
