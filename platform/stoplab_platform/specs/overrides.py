"""`--set a.b=value` and an arm's overrides: dotted fields laid over a spec."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any, TypeVar

import yaml

from stoplab_platform.errors import Problem, SpecError
from stoplab_platform.specs.base import Spec
from stoplab_platform.specs.parse import parse
from stoplab_platform.specs.plain_yaml import read_yaml

MOST_PARTS = 16
"""Names of a dotted path; no field lies so deep."""

KINDS_AS_TEXT = ("objective",)
"""Objects that may be written as their kind alone."""

S = TypeVar("S", bound=Spec)


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """`["positions.noise_std=0.25"]` to a mapping; values are read as YAML."""
    changes: dict[str, Any] = {}
    problems = []
    for text in assignments:
        path, sign, value = text.partition("=")
        if not sign or not path:
            problems.append(Problem((text,), f"{text!r} is no assignment; give a.b=value"))
            continue
        changes[path.strip()] = _yaml_value(value)
    if problems:
        raise SpecError(problems)
    return changes


def override(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``data`` with each dotted path of ``changes`` set.

    A path that ends in ``kind`` replaces the whole object it stands in, and is applied first,
    so that other fields of the new kind may be given beside it. Keys that hold dots themselves
    (axes of a sweep, overrides of an arm) are found whole.
    """
    if deep := [path for path in changes if path.count(".") >= MOST_PARTS]:
        text = f"a field lies at most {MOST_PARTS} names deep"
        raise SpecError([Problem((path[:80],), text) for path in deep])
    result: dict[str, Any] = deepcopy(dict(data))
    for path, value in sorted(changes.items(), key=lambda item: not item[0].endswith("kind")):
        *parents, last = _keys(result, path)
        if last == "kind" and parents:
            *parents, last = parents
            value = {"kind": value}
        node: Any = result
        for position, part in enumerate(parents):
            node = _child(node, part, parents[: position + 1])
        _assign(node, last, deepcopy(value), path)
    return result


def applied(base: S, changes: Mapping[str, Any], model: type[S]) -> S:
    """``base`` with overrides, validated anew; SpecError names every field that does not fit."""
    return parse(model, override(base.plain(), changes))


def _keys(data: Any, path: str) -> list[str]:
    """The path's keys: at each mapping the longest that is there, else up to the next dot."""
    keys, rest, node = [], path.split("."), data
    while rest:
        inside = node if isinstance(node, Mapping) else {}
        lengths = range(len(rest), 0, -1)
        length = next((n for n in lengths if ".".join(rest[:n]) in inside), 1)
        keys.append(".".join(rest[:length]))
        rest, node = rest[length:], inside.get(keys[-1])
    return keys


def _child(node: Any, part: str, path: list[str]) -> Any:
    if isinstance(node, list) and part.isdecimal() and int(part) < len(node):
        return node[int(part)]
    if not isinstance(node, dict):
        raise SpecError([Problem(tuple(path), f"nothing lies below {'.'.join(path[:-1])!r}")])
    if node.get(part) is None:
        node[part] = {}
    if part in KINDS_AS_TEXT and isinstance(node[part], str):
        node[part] = {"kind": node[part]}
    return node[part]


def _assign(node: Any, last: str, value: Any, path: str) -> None:
    if isinstance(node, list) and last.isdecimal() and int(last) < len(node):
        node[int(last)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise SpecError([Problem(tuple(path.split(".")), "no such field")])


def _yaml_value(text: str) -> Any:
    try:
        return read_yaml(text)
    except yaml.YAMLError as error:
        raise SpecError([Problem((), f"{text!r} is not YAML: {error}")]) from error
