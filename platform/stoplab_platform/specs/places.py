"""Which fields of a spec name places (files, folders, URLs), jobs, or runs in MLflow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from stoplab_platform.specs.data import EMBEDDED

FIELDS = frozenset(
    (
        "data.train",
        "data.val",
        "data.test",
        "data.eval.train",
        "data.eval.val",
        "data.eval.test",
        "model.init_from",
        "model.init_from.path",
        "checkpoint.path",
        "checkpoint.url",
        "evals.list",
        "protocols.list",
    )
)
"""Seen from a RunSpec or an EvaluationSpec."""
JOBS = frozenset(("checkpoint.job", "model.init_from.job"))
RUNS = frozenset(("checkpoint.mlflow_run", "model.init_from.mlflow_run"))
SETS = frozenset(name for base in EMBEDDED for name in (base, f"{base}/train", f"{base}/test"))
RANGE = re.compile(r"\{\d+\.\.\d+\}")
PATTERN = re.compile(r"[*?\[{]")
NUMBER = re.compile(r"\.\d+(?=\.)")  # of a list's item


def is_place(path: Sequence[str | int]) -> bool:
    """Whether a value of a spec of any kind, by its path, names a place."""
    return field(path) in FIELDS


def field(path: Sequence[str | int]) -> str:
    """The field of a RunSpec or an EvaluationSpec that a value of any spec is for, by its path."""
    words = [str(part) for part in path if isinstance(part, str)]
    if words[:1] == ["base"]:
        words = words[1:]
    elif words[:1] == ["arms"]:
        words = words[2:]
    elif words[:1] == ["space"]:
        words = [*words[1:2], *words[3:]]  # the axis, and the fields of a value that has some
    return NUMBER.sub("", ".".join(words))


def why_refused(place: str, roots: Sequence[Path] | None, schemes: Sequence[str]) -> str | None:
    """What is wrong with a place, or None; ``roots`` None: all local files may be named."""
    if place in SETS:
        return None
    if place.startswith("pipe:"):
        return f"{place!r}: give a path or URL; commands are not run"
    if "::" in place:
        return f"{place!r}: give a path or URL; chained URLs are not read"
    scheme, sign, rest = place.partition("://")
    if not sign:
        return _why_local(place, roots)
    if scheme not in schemes:
        return f"{place!r}: URLs of {', '.join(schemes)} can be read, no others"
    if "@" in rest.partition("/")[0]:
        # Not the value: it holds somebody's password.
        return f"a URL of {scheme} with credentials in it; give them by `storage: secret://NAME`"
    return _why_local(rest, roots) if scheme == "file" else None


def is_inside(path: Path, roots: Sequence[Path] | None) -> bool:
    """Whether a file lies below one of the roots, symbolic links followed."""
    real = path.resolve()
    return roots is None or any(real.is_relative_to(root.resolve()) for root in roots)


def _why_local(place: str, roots: Sequence[Path] | None) -> str | None:
    if roots is None:
        return None
    allowed = ", ".join(map(str, roots))
    one = RANGE.sub("0", place)
    if ".." in one:
        return f"{place!r}: write the path without `..`; it must lie below {allowed}"
    fixed = PATTERN.split(one, maxsplit=1)[0]
    if fixed != one:
        fixed = fixed.rpartition("/")[0]  # what a pattern cannot change
    if fixed and is_inside(Path(fixed).expanduser(), roots):
        return None
    return f"{place!r} must lie below {allowed}"
