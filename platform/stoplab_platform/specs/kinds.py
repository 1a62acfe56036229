"""Fields that hold one of several variants, told apart by `kind`, which plug-ins may add to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Union, cast, get_args

from pydantic import (
    BaseModel,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
)
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from stoplab_platform.errors import Problem
from stoplab_platform.plugins import PluginError, installed, spec_class
from stoplab_platform.specs.base import Spec, refused


class PluginSpec(Spec):
    """The spec of a plug-in; subclasses give `kind` the type `Literal[...]` of their own name."""

    kind: str
    """Names this variant."""
    implementation: ClassVar[str] = ""
    """Where its torch part lies, as `package.module:Class`; imported by trainers alone."""


@dataclass(frozen=True)
class Kinds:
    """Marks a union of variants: of its members, and of what plug-ins bring for this part."""

    part: str
    plugin: type[PluginSpec]
    """What plug-ins for this part derive from; a member of the union itself."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """The members by their kind; any other kind is looked for among the plug-ins."""
        own = tuple(one for one in get_args(source) if one is not self.plugin)
        models = {_kind(one): one for one in own}

        def validate(value: Any, members: ValidatorFunctionWrapHandler) -> Any:
            kind = value.get("kind") if isinstance(value, Mapping) else None
            if isinstance(value, PluginSpec):
                return value
            if not isinstance(kind, str):
                return members(value)
            # Not by the union: it puts the kind into the path of every problem.
            model = models.get(kind) or self._plugged(kind, models)
            return model.model_validate(value)

        tagged = Annotated[Union[own], Field(discriminator="kind")]  # type: ignore[valid-type]  # noqa: UP007
        return core_schema.no_info_wrap_validator_function(
            validate,
            handler.generate_schema(tagged),
            # By the type of what is there, so that plug-ins are written whole as well.
            serialization=core_schema.simple_ser_schema("any"),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The members, and each installed plug-in that can be used."""
        found = handler(schema)
        if "oneOf" not in found:  # it stands in a union itself, and was met in there
            return found
        members = map(handler.resolve_ref_schema, found["oneOf"])
        own = {one["properties"]["kind"]["const"] for one in members}
        for kind in sorted(installed(self.part).keys() - own):  # what is ours stays ours
            with suppress(PluginError, PydanticInvalidForJsonSchema):
                plugged = spec_class(self.part, kind, self.plugin)
                found["oneOf"].append(handler(plugged.__pydantic_core_schema__))
        return found

    def _plugged(self, kind: str, models: Mapping[str, Any]) -> type[BaseModel]:
        plugins = installed(self.part).keys() - models
        if kind not in plugins:
            there = _listed(plugins) if plugins else "none"
            raise _of_kind(
                f"{kind!r} is none of {_listed(models)}; "
                f"plug-ins for {self.part} installed here: {there}"
            )
        try:
            return cast(type[BaseModel], spec_class(self.part, kind, self.plugin))
        except PluginError as error:
            raise _of_kind(str(error)) from error


def _kind(model: type[BaseModel]) -> str:
    (name,) = get_args(model.model_fields["kind"].annotation)
    return str(name)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))


def _of_kind(message: str) -> ValidationError:
    # What else stands in the object is another kind's to judge.
    return refused("kind", [Problem(("kind",), message, ((),))])
