"""Local paths in a spec, made absolute before the spec leaves the folder it was written for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stoplab_platform.specs.places import FIELDS, SETS


def absolute_paths(spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A spec's plain data with its relative local paths laid below ``folder``.

    Names of embedded sets, URLs and absolute paths stay; so does whatever is no path at all,
    which validation then refuses.
    """
    result = {key: _walk(value, key, folder) for key, value in spec.items()}
    if isinstance(spec.get("base"), Mapping):
        result["base"] = absolute_paths(spec["base"], folder)
    if isinstance(spec.get("arms"), Mapping):
        result["arms"] = {name: _each(arm, folder) for name, arm in spec["arms"].items()}
    if isinstance(spec.get("space"), Mapping):
        result["space"] = {
            path: _each_list(axis, path, folder) for path, axis in spec["space"].items()
        }
    return result


def _each(changes: Any, folder: Path) -> Any:
    """An arm: dotted field to value."""
    if not isinstance(changes, Mapping):
        return changes
    return {path: _walk(value, path, folder) for path, value in changes.items()}


def _each_list(axis: Any, path: str, folder: Path) -> Any:
    """An axis: its lists hold values of the field at ``path``."""
    if not isinstance(axis, Mapping):
        return axis
    return {way: _walk(values, path, folder) for way, values in axis.items()}


def _walk(value: Any, path: str, folder: Path) -> Any:
    if isinstance(value, Mapping):
        return {key: _walk(inner, f"{path}.{key}", folder) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_walk(item, path, folder) for item in value]
    return _absolute(value, folder) if path in FIELDS else value


def _absolute(value: Any, folder: Path) -> Any:
    if not isinstance(value, str) or not value or value in SETS or "://" in value:
        return value
    return str(folder / value)
