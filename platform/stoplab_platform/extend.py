"""More of a study: its spec with seeds, points or replicates added, or under other limits.

The additions have the spec's own shape; lists are added to, numbers are raised. What is already
there cannot be changed, so every finished run of the old study is a run of the new one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stoplab_platform.errors import Problem, SpecError
from stoplab_platform.specs import AnySpec, ComparisonSpec, SweepSpec, parse_spec

LISTS = ("grid", "choice")
MEMBERS = {"compare": ("seeds", "limits"), "sweep": ("space", "search", "replicates", "limits")}


def extended(spec: AnySpec, additions: Mapping[str, Any]) -> AnySpec:
    """``spec`` with more in it; SpecError names every addition that does not fit.

    ``additions`` may hold, for a comparison, `seeds` (a list to add); for a sweep, `space` (axis
    to `{grid: [...]}` or `{choice: [...]}` with the values to add), `search` (`{samples: n}`, in
    all) and `replicates` (in all); for both, `limits` (fields to set).
    """
    if not isinstance(spec, SweepSpec | ComparisonSpec):
        raise SpecError.of("kind", f"a {spec.kind} job cannot be extended; sweeps, comparisons can")
    if isinstance(spec, SweepSpec) and spec.scheduler.kind == "pbt":
        text = "'pbt': nothing can join a population afterwards; submit a new sweep"
        raise SpecError([Problem(("scheduler", "kind"), text)])
    problems = list(_misplaced(spec.kind, additions))
    if not problems:
        find = _sweep_problems if isinstance(spec, SweepSpec) else _seed_problems
        problems = list(find(spec, additions))  # type: ignore[arg-type]
    if problems:
        raise SpecError(problems)
    data = spec.plain()
    data["limits"].update(additions.get("limits", {}))
    data["seeds" if spec.kind == "compare" else "space"] = (
        [*data["seeds"], *additions["seeds"]]
        if isinstance(spec, ComparisonSpec)
        else _more_values(data["space"], additions.get("space", {}))
    )
    if isinstance(spec, SweepSpec):
        data["search"].update(additions.get("search", {}))
        data["replicates"] = additions.get("replicates", spec.replicates)
    return parse_spec(data)


def limited(spec: AnySpec, limits: Mapping[str, Any]) -> AnySpec:
    """``spec`` with some fields of its limits replaced; SpecError where they do not fit."""
    if not limits:
        return spec
    return parse_spec({**spec.plain(), "limits": {**spec.limits.plain(), **limits}})


def _misplaced(kind: str, additions: Mapping[str, Any]) -> Iterator[Problem]:
    known = MEMBERS[kind]
    for name in additions:
        if name not in known:
            yield Problem((name,), f"cannot be added to a {kind} job; give {', '.join(known)}")
    if not any(additions.get(name) for name in known if name != "limits"):
        yield Problem((known[0],), f"nothing is added; give {' or '.join(known[:-1])}")


def _seed_problems(spec: ComparisonSpec, additions: Mapping[str, Any]) -> Iterator[Problem]:
    known = [seed for seed in additions["seeds"] if seed in spec.seeds]
    if known:
        yield Problem(("seeds",), f"{known} are in the study already; give new ones")


def _sweep_problems(spec: SweepSpec, additions: Mapping[str, Any]) -> Iterator[Problem]:
    for path, more in additions.get("space", {}).items():
        yield from _axis_problems(spec, path, more)
    samples = additions.get("search", {}).get("samples")
    if additions.get("space") and spec.search.kind == "optuna" and samples is None:
        text = f"the study has had its {spec.search.samples}; give more, in all, for the new values"
        yield Problem(("search", "samples"), text)
    if samples is not None and samples <= (spec.search.samples or 0):
        yield Problem(
            ("search", "samples"),
            f"{samples}: the study has {spec.search.samples}; give more, in all",
        )
    replicates = additions.get("replicates")
    if replicates is not None and replicates <= spec.replicates:
        yield Problem(
            ("replicates",), f"{replicates}: the study has {spec.replicates}; give more, in all"
        )


def _axis_problems(spec: SweepSpec, path: str, more: Mapping[str, Any]) -> Iterator[Problem]:
    at = ("space", path)
    if path not in spec.space:
        yield Problem(at, f"is no axis of this study; its axes are {', '.join(spec.space)}")
        return
    axis = spec.space[path].plain(defaults=False)
    ways = [way for way in LISTS if way in axis]
    if ways and spec.search.kind in ("random", "sobol"):
        text = f"a {spec.search.kind} search would draw every point anew; submit a new sweep"
        yield Problem(at, text)
    elif not ways:
        yield Problem(at, "is a range, so there are no values to add; raise search.samples")
    elif list(more) != ways:
        yield Problem(at, f"is a {ways[0]}; give {{{ways[0]}: [values to add]}}")
    else:
        known = [value for value in more[ways[0]] if value in axis[ways[0]]]
        if known:
            yield Problem((*at, ways[0]), f"{known} are in the study already; give new ones")


def _more_values(
    space: Mapping[str, Mapping[str, Any]], more: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    return {
        path: {way: [*axis[way], *more[path][way]] for way in more[path]}
        if path in more
        else dict(axis)
        for path, axis in space.items()
    }
