"""JSON schemas that are as strict as the models they come from."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from stoplab_platform.specs.base import Spec


class StrictSchema(GenerateJsonSchema):
    """Pydantic's, but for one gap: of a mapping whose keys have a form it lets others pass."""

    def dict_schema(self, schema: core_schema.DictSchema) -> JsonSchemaValue:
        """A mapping."""
        made = super().dict_schema(schema)
        if "patternProperties" in made:
            made["additionalProperties"] = False
        return made


def schema_of(model: type[Spec]) -> dict[str, Any]:
    """The JSON schema of a spec."""
    return model.model_json_schema(schema_generator=StrictSchema)
