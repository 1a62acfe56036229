"""What every spec shares: frozen, strict, all errors at once, a digest, YAML in and out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any, NoReturn, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from stoplab_platform.errors import Problem

Path = tuple[str | int, ...]


class Spec(BaseModel):
    """Base of all specs. The string under a field is its description, in the schema too."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )

    def checks(self) -> Iterator[Problem]:
        """Problems that only show across fields; paths are relative to this model."""
        yield from ()

    @model_validator(mode="before")
    @classmethod
    def _each_as_it_is(cls, data: Any) -> Any:
        """Refuse what pydantic would turn: `true` for 1, `"64"` for 64, `1` for true."""
        if not isinstance(data, Mapping):
            return data
        problems = [
            Problem((name,), why)
            for name, types in field_types(cls).items()
            if (why := _mistaken(data.get(name), types))
        ]
        return _raise(cls, problems) if problems else data

    @model_validator(mode="after")
    def _run_checks(self) -> Self:
        problems = list(self.checks())
        return _raise(type(self), problems) if problems else self

    def plain(self, *, defaults: bool = True) -> dict[str, Any]:
        """The spec as JSON types; without the defaulted fields if ``defaults`` is false."""
        return self.model_dump(mode="json", by_alias=True, exclude_defaults=not defaults)

    def to_yaml(self) -> str:
        """The whole spec as YAML, in the order of the fields."""
        return yaml.safe_dump(self.plain(), sort_keys=False, allow_unicode=True)

    def digest(self) -> str:
        """Identity of the whole spec: sha256 (hex) of its canonical JSON.

        Defaulted fields are left out, so that a field added later renames no old spec.
        """
        return canonical_digest(self.plain(defaults=False))


@cache
def field_types(model: type[BaseModel]) -> Mapping[str, frozenset[Any]]:
    """The types that each field is made of, unions, lists and null taken apart."""
    return {
        field.alias or name: frozenset(_leaves(field.annotation)) - {type(None), Ellipsis}
        for name, field in model.model_fields.items()
    }


def canonical_digest(value: Any) -> str:
    """The sha256 (hex) of ``value`` as JSON with sorted keys and no white space."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _mistaken(value: Any, types: frozenset[Any]) -> str | None:
    """What is wrong with the type of a value, or of one in a list; None where pydantic says it."""
    for one in value if isinstance(value, list | tuple) else (value,):
        if isinstance(one, bool) and bool not in types and Any not in types:
            return f"{one} is a truth value; give a number or a text"
        if isinstance(one, str) and types and types <= {int, float}:
            return f"{one!r} is a text; give a number"
        if types == {bool} and isinstance(one, int | float | str) and not isinstance(one, bool):
            return f"{one!r} is no truth value; give true or false"
    return None


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    if not (inner := get_args(annotation)):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from _leaves(inner[0])
    else:
        for one in inner:
            yield from _leaves(one)


def refused(title: str, problems: list[Problem]) -> ValidationError:
    """Problems as what pydantic raises."""
    return ValidationError.from_exception_data(title, [_as_error(p) for p in problems])


def _raise(model: type[Spec], problems: list[Problem]) -> NoReturn:
    raise refused(model.__name__, problems)


def _as_error(problem: Problem) -> InitErrorDetails:
    error = PydanticCustomError(
        "cross_field",
        "{message}",
        {"message": problem.message, "involves": problem.involves, "depth": len(problem.path)},
    )
    return InitErrorDetails(type=error, loc=problem.path, input=None)
