"""From plain data to a spec, with every problem at once.

Pydantic stops checking across fields as soon as one field is wrong. Here each value at fault is
set aside and the rest is checked again, so that a spec with three mistakes gets three problems.
What is only found wrong because something was set aside is no problem of the user's: then what
it hangs on, and last the object around it, is set aside too.
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
ROUNDS = 12
MOST_PROBLEMS = 100
MOST_SHOWN = 200  # characters of a value at fault
MISSING = "required, and not given"
ONE = ("constrained-str", "constrained-int")  # pydantic's names for what may be a list as well
MANY = tuple(f"tuple[{one}, ...]" for one in ONE)

S = TypeVar("S", bound=Spec)


def parse(model: type[S], data: Any) -> S:
    """Validate ``data`` as ``model``; SpecError holds every problem, each with its path."""
    work = deepcopy(data)
    found: dict[tuple[Path, str], Problem] = {}
    aside: set[Path] = set()
    for _ in range(ROUNDS):
        try:
            spec = model.model_validate(work)
        except ValidationError as error:
            problems = list(_problems(error, work))
            if len(problems) > MOST_PROBLEMS:
                raise SpecError(_first(problems)) from error
        else:
            if not found:
                return spec
            break
        hung_on = aside.union(*(problem.involves for problem in found.values()))
        fresh = [p for p in problems if not _touches(p, hung_on)]
        found.update({(p.path, p.message): p for p in fresh})
        doubtful = {path for p in fresh for path in _blamed(p)}
        if not fresh:
            doubtful = {path for p in problems for path in _next_to_blame(p, aside)}
        if not doubtful:
            break
        for path in sorted(doubtful, key=len, reverse=True):
            _set_aside(work, path)
        aside |= doubtful
    raise SpecError(list(found.values()))


def _first(problems: list[Problem]) -> list[Problem]:
    """As many as people read; to look for those behind so many would take long."""
    more = Problem((), f"{len(problems) - MOST_PROBLEMS} problems more")
    return [*problems[:MOST_PROBLEMS], more]


def _problems(error: ValidationError, data: Any) -> Iterator[Problem]:
    for detail in error.errors(include_url=False):
        last = detail["loc"][-1] if detail["loc"] else None
        if last in MANY or (last in ONE and isinstance(detail["input"], list | tuple)):
            continue  # the other member of the union says it
        context = detail.get("ctx", {})
        # A check across fields names its fields from the model that checked: no tags among them.
        own = len(detail["loc"]) - int(context.get("depth", 0))
        model = _without_tags(detail["loc"][:own], data)
        path = (*model, *detail["loc"][own:])
        if detail["type"] in ("union_tag_invalid", "union_tag_not_found"):
            path = (*path, "kind")
        involves = tuple((*model, *other) for other in context.get("involves", ()))
        yield Problem(path, _sentence(detail), involves)


def _sentence(detail: ErrorDetails) -> str:
    match detail["type"]:
        case "extra_forbidden":
            return "unknown field"
        case "missing" | "union_tag_not_found":
            return MISSING
        case "union_tag_invalid":
            context = detail.get("ctx", {})
            return f"{context['tag']!r} is none of {context['expected_tags']}"
        case "cross_field":
            return detail["msg"]
    message = detail["msg"].removeprefix("Value error, ")
    value = repr(detail["input"])
    shown = value if len(value) <= MOST_SHOWN else f"{value[:MOST_SHOWN]}…"
    return message if value in message else f"{shown}: {message}"


def _without_tags(loc: tuple[str | int, ...], data: Any) -> Path:
    """The location without the names of union members that pydantic puts into it."""
    path: list[str | int] = []
    node = data
    for position, part in enumerate(loc):
        inside = not isinstance(node, Mapping) or part in node
        # A field that is not there can only be the last part.
        tag = part == _step(node, "kind") or position < len(loc) - 1
        if part in (*ONE, *MANY) or (not inside and tag):
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


def _touches(problem: Problem, aside: set[Path]) -> bool:
    return any(
        path[: len(other)] == other or other[: len(path)] == path
        for path in (problem.path, *problem.involves)
        for other in aside
    )


def _blamed(problem: Problem) -> Iterator[Path]:
    """The value at fault; of a list's item the list, so that no other item changes its place."""
    path = problem.path
    while path and isinstance(path[-1], int):
        path = path[:-1]
    if path:
        yield path


def _next_to_blame(problem: Problem, aside: set[Path]) -> Iterator[Path]:
    """What else may go: the value itself, what it hangs on, the object around it."""
    if problem.message == MISSING and problem.path[-1] in STAND_INS:
        yield problem.path
        return
    for path in (problem.path, *problem.involves, *_around(problem.path)):
        if path and path not in aside:
            yield path
            return


def _around(path: Path) -> Iterator[Path]:
    for length in range(len(path) - 1, 0, -1):
        if not isinstance(path[length - 1], int):
            yield path[:length]


def _set_aside(data: Any, path: Path) -> None:
    """Take the value at ``path`` out; a stand-in comes where a required one is missing."""
    node = data
    for part in path[:-1]:
        node = _step(node, part)
    if not isinstance(node, dict):
        return
    last = path[-1]
    if last in node:
        del node[last]
    elif last in STAND_INS:
        node[last] = deepcopy(STAND_INS[str(last)])
