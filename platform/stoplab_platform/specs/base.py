"""What every spec shares: frozen, strict, all errors at once, a digest, YAML in and out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from stoplab_platform.errors import Problem

Path = tuple[str | int, ...]


class Spec(BaseModel):
    """Base of all specs. The string under a field is its description, in the schema too."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True
    )

    def checks(self) -> Iterator[Problem]:
        """Problems that only show across fields; paths are relative to this model."""
        yield from ()

    @model_validator(mode="after")
    def _run_checks(self) -> Self:
        problems = list(self.checks())
        if problems:
            raise ValidationError.from_exception_data(
                type(self).__name__, [_as_error(p) for p in problems]
            )
        return self

    def plain(self, *, defaults: bool = True) -> dict[str, Any]:
        """The spec as JSON types; without the defaulted fields if ``defaults`` is false."""
        return self.model_dump(mode="json", exclude_defaults=not defaults)

    def to_yaml(self) -> str:
        """The whole spec as YAML, in the order of the fields."""
        return yaml.safe_dump(self.plain(), sort_keys=False, allow_unicode=True)

    def digest(self) -> str:
        """Identity of the whole spec: sha256 (hex) of its canonical JSON.

        Defaulted fields are left out, so that a field added later renames no old spec.
        """
        return canonical_digest(self.plain(defaults=False))


def canonical_digest(value: Any) -> str:
    """The sha256 (hex) of ``value`` as JSON with sorted keys and no white space."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _as_error(problem: Problem) -> InitErrorDetails:
    error = PydanticCustomError(
        "cross_field",
        "{message}",
        {"message": problem.message, "involves": problem.involves, "depth": len(problem.path)},
    )
    return InitErrorDetails(type=error, loc=problem.path, input=None)
