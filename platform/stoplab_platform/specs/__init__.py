"""Specs: what users write. One kind a file; `parse_spec` reads any of the four."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from stoplab_platform.errors import Problem, SpecError
from stoplab_platform.specs.comparison import ComparisonSpec
from stoplab_platform.specs.evaluation import EvaluationSpec
from stoplab_platform.specs.overrides import applied, override, parse_assignments
from stoplab_platform.specs.parse import parse
from stoplab_platform.specs.plain_yaml import read_yaml
from stoplab_platform.specs.ready import ready_spec
from stoplab_platform.specs.run import RunSpec
from stoplab_platform.specs.sweep import SweepSpec

AnySpec = RunSpec | SweepSpec | ComparisonSpec | EvaluationSpec
KINDS: dict[str, type[AnySpec]] = {
    "pretrain": RunSpec,
    "sweep": SweepSpec,
    "compare": ComparisonSpec,
    "evaluate": EvaluationSpec,
}

__all__ = [
    "KINDS",
    "AnySpec",
    "ComparisonSpec",
    "EvaluationSpec",
    "RunSpec",
    "SweepSpec",
    "applied",
    "load_spec",
    "override",
    "parse",
    "parse_assignments",
    "parse_spec",
    "read_yaml",
]


def parse_spec(data: Any) -> AnySpec:
    """Plain data to the spec that its ``kind`` names; SpecError holds every problem."""
    if not isinstance(data, Mapping):
        raise SpecError([Problem((), f"a spec is a mapping, not {type(data).__name__}")])
    kind = data.get("kind")
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise SpecError([Problem(("kind",), f"{kind!r} is none of {list(KINDS)}")])
    return parse(model, data)


def load_spec(path: Path, changes: Mapping[str, Any] | None = None) -> AnySpec:
    """A YAML file to a spec, ``changes`` (dotted field to value) laid over it.

    A ``base`` that is a path is read relative to the file. Where no file of a name exists, a ready
    spec of that name is meant (`ready.ready_spec`).
    """
    return parse_spec(override(_read(path), changes or {}))


def _read(path: Path, name: str | None = None) -> dict[str, Any]:
    try:
        data = read_yaml(_found(path, name or str(path)).read_text())
    except OSError as error:
        raise SpecError([Problem((), f"{path} cannot be read: {error.strerror}")]) from error
    except yaml.YAMLError as error:
        raise SpecError([Problem((), f"{path} is not YAML: {error}")]) from error
    if not isinstance(data, dict):
        raise SpecError([Problem((), f"{path} holds {type(data).__name__}, not a mapping")])
    if isinstance(data.get("base"), str):
        data["base"] = _read(path.parent / data["base"], data["base"])
    return data


def _found(path: Path, name: str) -> Path:
    return path if path.exists() else ready_spec(name) or path
