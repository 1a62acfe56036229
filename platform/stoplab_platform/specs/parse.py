"""From plain data to a spec, with every problem at once.

Pydantic stops checking across fields as soon as one field is wrong. Here each field at fault is
set aside and the rest is checked again, so that a spec with three mistakes gets three problems.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from stoplab_platform.errors import Problem, SpecError
from stoplab_platform.specs.base import Path, Spec

# Stand-ins for required fields that are missing, so that the rest can be checked.
STAND_INS: dict[str, Any] = {
    "name": "x", "data": {"train": "digits"}, "train": "digits", "test": "digits",
    "base": {"kind": "pretrain", "name": "x", "data": {"train": "digits"}},
    "arms": {"a": {}, "b": {}}, "space": {"seed": {"grid": [0]}},
    "checkpoint": {"path": "x"},
}  # fmt: skip
ROUNDS = 6

S = TypeVar("S", bound=Spec)


def parse(model: type[S], data: Any) -> S:
    """Validate ``data`` as ``model``; SpecError holds every problem, each with its path."""
    work = deepcopy(data)
    found: dict[tuple[Path, str], Problem] = {}
    aside: list[Path] = []
    for _ in range(ROUNDS):
        try:
            spec = model.model_validate(work)
        except ValidationError as error:
            fresh = [p for p in _problems(error, work) if not _touches(p, aside)]
            if not fresh:
                break
            for problem in fresh:
                found.setdefault((problem.path, problem.message), problem)
                aside.append(problem.path)
                _set_aside(work, problem.path)
        else:
            if not found:
                return spec
            break
    raise SpecError(list(found.values()))


def _problems(error: ValidationError, data: Any) -> Iterator[Problem]:
    for detail in error.errors(include_url=False):
        context = detail.get("ctx", {})
        path = _without_tags(detail["loc"], data)
        if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
            path = (*path, "kind")
        # `involves` is relative to the model that checked, which is where its own path starts.
        own = len(path) - int(context.get("depth", len(path)))
        involves = tuple((*path[:own], *other) for other in context.get("involves", ()))
        yield Problem(path, _sentence(detail), involves)


def _sentence(detail: ErrorDetails) -> str:
    if detail["type"] == "extra_forbidden":
        return "unknown field"
    if detail["type"] == "missing":
        return "required, and not given"
    if detail["type"] == "cross_field":
        return detail["msg"]
    message = detail["msg"].removeprefix("Value error, ")
    value = repr(detail["input"])
    return message if value in message else f"{value}: {message}"


def _without_tags(loc: tuple[str | int, ...], data: Any) -> Path:
    """The location without the names of union members that pydantic puts into it."""
    path: list[str | int] = []
    node = data
    for part in loc:
        inside = isinstance(node, Mapping) and part in node
        if isinstance(node, Mapping) and not inside and part == node.get("kind"):
            continue
        if part in ("str", "tuple[str, ...]"):
            continue
        path.append(part)
        node = _step(node, part)
    return tuple(path)


def _step(node: Any, part: str | int) -> Any:
    if isinstance(node, Mapping):
        return node.get(part)
    if isinstance(node, list | tuple) and isinstance(part, int) and part < len(node):
        return node[part]
    return {}


def _touches(problem: Problem, aside: list[Path]) -> bool:
    return any(
        path[: len(other)] == other or other[: len(path)] == path
        for path in (problem.path, *problem.involves)
        for other in aside
    )


def _set_aside(data: Any, path: Path) -> None:
    """Take the value at ``path`` out, or put a stand-in where a required one is missing."""
    if not path:
        return
    node = data
    for part in path[:-1]:
        node = _step(node, part)
    last = path[-1]
    if isinstance(node, dict):
        if last in STAND_INS:
            node[last] = deepcopy(STAND_INS[str(last)])
        else:
            node.pop(last, None)
    elif isinstance(node, list) and isinstance(last, int) and last < len(node):
        node.pop(last)
